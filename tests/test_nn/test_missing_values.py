"""Missing values in FCMAE: the loss against a loop over single values in float64.

Shape suffixes: N batch, C channels, H and W pixels of an image or the grid of patches.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmconvnextv2.nn import FCMAE, FCMAEHead, patchify

pytestmark = pytest.mark.unit

NAN = float("nan")


def batch(channels: int = 2, share: float = 0.1) -> tuple[Tensor, Tensor]:
    """Images of 64x96 pixels with single values missing, one patch whole, one but for a value."""
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(2, channels, 64, 96, generator=generator, dtype=torch.float64)
    x_NCHW[torch.rand(x_NCHW.shape, generator=generator) < share] = NAN
    x_NCHW[0, :, :32, :32] = NAN
    x_NCHW[1, :, 32:, 64:] = NAN
    x_NCHW[1, 0, 40, 70] = 3.0
    mask_NHW = torch.tensor([[[1, 0, 1], [0, 1, 0]], [[0, 1, 0], [1, 0, 1]]], dtype=torch.bool)
    return x_NCHW, mask_NHW


def slow_loss(prediction: Tensor, x_NCHW: Tensor, mask_NHW: Tensor, norm_pix: bool) -> float:
    """Collect the known values of every removed patch one by one."""
    total, count = 0.0, 0
    patches = patchify(x_NCHW, 32)
    for n, row, column in mask_NHW.nonzero().tolist():
        values = patches[n, row, column].tolist()
        known = [i for i, value in enumerate(values) if value == value]
        target = [values[i] for i in known]
        if norm_pix and target:
            mean = sum(target) / len(target)
            spread = sum((v - mean) ** 2 for v in target) / max(len(target) - 1, 1)
            target = [(v - mean) / (spread + 1e-6) ** 0.5 for v in target]
        for i, wanted in zip(known, target, strict=True):
            total += (float(prediction[n, row, column, i]) - wanted) ** 2
            count += 1
    return total / count


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_loss_counts_every_known_value_once(channels, norm_pix):
    x_NCHW, mask_NHW = batch(channels)
    torch.manual_seed(
        7
    )  # not the seed of the images, which a prediction would equal here and there
    prediction = torch.randn(patchify(x_NCHW, 32).shape, dtype=torch.float64)
    prediction.requires_grad_()
    loss = FCMAEHead(norm_pix, missing="ignore")(prediction, x_NCHW, mask_NHW)
    expected = slow_loss(prediction.detach(), x_NCHW, mask_NHW, norm_pix)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    counted = ~patchify(x_NCHW, 32).isnan() & mask_NHW[..., None]
    assert torch.equal(prediction.grad != 0, counted)
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("norm_pix", [True, False])
def test_without_missing_values_both_choices_agree(norm_pix):
    x_NCHW, mask_NHW = batch(share=0.0)
    x_NCHW = x_NCHW.nan_to_num(1.5)
    torch.manual_seed(7)
    prediction = torch.randn(patchify(x_NCHW, 32).shape, dtype=torch.float64)
    losses = [FCMAEHead(norm_pix, m)(prediction, x_NCHW, mask_NHW) for m in ("refuse", "ignore")]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def test_the_default_is_bit_equal_to_the_plain_formula():
    generator = torch.Generator().manual_seed(1)
    x_NCHW = torch.randn(2, 3, 64, 96, generator=generator)
    prediction = torch.randn(2, 2, 3, 3072, generator=generator)
    _, mask_NHW = batch()
    patches = patchify(x_NCHW, 32)
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    error = (prediction - (patches - mean) / (variance + 1e-6).sqrt()).square().mean(dim=-1)
    expected = (error * mask_NHW).sum() / mask_NHW.sum()
    assert torch.equal(FCMAEHead()(prediction, x_NCHW, mask_NHW), expected)
    assert FCMAEHead().fill_missing(x_NCHW) is x_NCHW


def test_nothing_known_costs_nothing():
    x_NCHW, mask_NHW = torch.full((2, 1, 64, 96), NAN), batch()[1]
    prediction = torch.randn(2, 2, 3, 1024, requires_grad=True)
    loss = FCMAEHead(missing="ignore")(prediction, x_NCHW, mask_NHW)
    loss.backward()
    assert loss == 0 and not prediction.grad.any()


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_the_encoder_sees_the_mean_where_values_are_missing(layout, tiny_arch, randomize_grn):
    torch.manual_seed(0)
    options = dict(arch=tiny_arch, in_channels=2, decoder_channels=16, mask_layout=layout)
    ignoring = randomize_grn(FCMAE.build(missing="ignore", **options)).double()
    plain = FCMAE.build(**options).double()
    plain.load_state_dict(ignoring.state_dict())
    x_NCHW, mask_NHW = batch()
    filled = x_NCHW.nan_to_num(0.0)
    for mode in (ignoring.forward_encoder, plain.forward_encoder):
        assert torch.equal(mode(filled, mask_NHW), ignoring.forward_encoder(x_NCHW, mask_NHW))
    assert torch.equal(ignoring(x_NCHW)[-1], plain(filled)[-1])

    loss = ignoring(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
    prediction = plain.forward_decoder(plain.forward_encoder(filled, mask_NHW), mask_NHW)
    assert loss.item() == pytest.approx(slow_loss(prediction, x_NCHW, mask_NHW, True), rel=1e-9)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in ignoring.parameters() if p.grad is not None)
    assert ignoring(x_NCHW, mask=mask_NHW, mode="predict").isfinite().all()


def test_reconstruction_undoes_the_normalisation_of_known_values():
    x_NCHW, _ = batch()
    head = FCMAEHead(missing="ignore")
    target = head._normalize(patchify(x_NCHW, 32)).nan_to_num(0.0)
    restored = head.reconstruct(target, x_NCHW)
    known = ~x_NCHW.isnan()
    torch.testing.assert_close(restored[known], x_NCHW[known], rtol=1e-9, atol=1e-9)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="'drop'"):
        FCMAEHead(missing="drop")
