"""SimMIM around a ConvNet: what the encoder sees, what the loss counts, what is refused."""

from __future__ import annotations

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from mmconvnextv2.models import ConvNeXtV2
from mmconvnextv2.models.simmim import ConvNetSimMIM

pytestmark = pytest.mark.unit

PATCH = 4


@pytest.fixture
def model(tiny_arch: dict, randomize_grn) -> ConvNetSimMIM:
    config = dict(
        type="ConvNetSimMIM",
        backbone=dict(
            type="mmpretrain.ConvNeXtV2",
            arch=tiny_arch,
            gap_before_final_norm=False,
            output_norms=False,
        ),
        neck=dict(type="SimMIMLinearDecoder", in_channels=32, encoder_stride=32),
        head=dict(
            type="SimMIMHead",
            patch_size=PATCH,
            loss=dict(type="PixelReconstructionLoss", criterion="L1", channel=3),
        ),
    )
    return randomize_grn(MODELS.build(config)).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Images of 64x96 pixels, which is no square, and masks of 16x24 patches, finer than a cell."""
    mask_NHW = (torch.rand(2, 16, 24) < 0.5).long()
    return torch.randn(2, 3, 64, 96, dtype=torch.float64), mask_NHW


def pixels(mask_NHW: Tensor) -> Tensor:
    """Which pixels a mask of patches removes, one by one: (N, H, W)."""
    count, rows, columns = mask_NHW.shape
    removed = torch.zeros(count, rows * PATCH, columns * PATCH, dtype=torch.bool)
    for n, y, x in mask_NHW.nonzero().tolist():
        removed[n, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] = True
    return removed


def samples(mask_NHW: Tensor) -> list[DataSample]:
    return [DataSample().set_mask(mask) for mask in mask_NHW]


def test_removed_pixels_become_the_token(model, batch):
    x_NCHW, mask_NHW = batch
    removed_NHW = pixels(mask_NHW)
    filled = model.fill(x_NCHW, mask_NHW)
    for channel in range(3):
        assert torch.equal(filled[:, channel][~removed_NHW], x_NCHW[:, channel][~removed_NHW])
        assert (filled[:, channel][removed_NHW] == model.mask_token[0, channel, 0, 0]).all()


def test_a_prediction_depends_on_visible_pixels_and_the_token_alone(model, batch):
    x_NCHW, mask_NHW = batch
    removed_N1HW = pixels(mask_NHW)[:, None]
    noise = torch.randn_like(x_NCHW)
    with torch.no_grad():
        before = model.reconstruct(x_NCHW, mask_NHW)
        assert torch.equal(model.reconstruct(x_NCHW + noise * removed_N1HW, mask_NHW), before)
        moved = model.reconstruct(x_NCHW + noise * ~removed_N1HW, mask_NHW)
        model.mask_token.add_(1.0)
        with_another_token = model.reconstruct(x_NCHW, mask_NHW)
    assert before.shape == x_NCHW.shape
    assert not torch.allclose(moved, before)
    assert not torch.allclose(with_another_token, before)


def test_the_loss_is_the_mean_error_of_removed_pixels(model, batch):
    x_NCHW, mask_NHW = batch
    loss = model(x_NCHW, samples(mask_NHW), mode="loss")["loss"]
    with torch.no_grad():
        prediction_NCHW = model.reconstruct(x_NCHW, mask_NHW)
    errors = [
        (prediction_NCHW[n, c, y, x] - x_NCHW[n, c, y, x]).abs()
        for n, y, x in pixels(mask_NHW).nonzero().tolist()
        for c in range(3)
    ]
    assert loss.item() == pytest.approx(sum(errors).item() / len(errors), rel=1e-9)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.mask_token.grad.abs().min() > 0


def test_features_are_those_of_the_encoder_on_whole_images(model, batch):
    x_NCHW, _ = batch
    assert isinstance(model.backbone, ConvNeXtV2)
    assert torch.equal(model(x_NCHW, mode="tensor")[0], model.backbone(x_NCHW)[0])


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 24, 16), (1, 16, 24)])
def test_a_mask_of_another_grid_is_refused(model, batch, shape):
    with pytest.raises(ValueError, match=r"images \(2, 3, 64, 96\) and patches of 4 pixels"):
        model.reconstruct(batch[0], torch.ones(shape))
