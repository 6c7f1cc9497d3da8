"""The plain FCMAE: against the slow reference, packed against masked, patches, modes, bad input."""

from __future__ import annotations

import inspect

import pytest
import reference
import torch
from torch import Tensor

from mmconvnextv2.nn import (
    ARCHITECTURES,
    FCMAE,
    ConvNeXtV2,
    FCMAEDecoder,
    FCMAEHead,
    VisibleCells,
    patchify,
    random_masking,
    unpatchify,
)

pytestmark = pytest.mark.unit

# Encoder without output norms and decoder of width 512.
PARAMETERS = {
    "atto": 7_257_992,
    "femto": 8_751_472,
    "pico": 12_521_792,
    "nano": 19_016_592,
    "tiny": 31_965_568,
    "base": 91_922_432,
    "large": 200_910_592,
    "huge": 662_616_192,
}


def build(tiny_arch, randomize_grn, **kwargs) -> FCMAE:
    model = FCMAE.build(**{"arch": tiny_arch, "decoder_channels": 16, **kwargs})
    return randomize_grn(model).double()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameter_count(arch):
    with torch.device("meta"):
        model = FCMAE.build(arch)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("in_channels", [3, 1, 5])
@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_the_loss_and_every_gradient_agree_with_the_reference(
    layout, norm_pix, in_channels, tiny_arch, randomize_grn, random_mask, relative_error
):
    model = build(
        tiny_arch,
        randomize_grn,
        in_channels=in_channels,
        norm_pix=norm_pix,
        decoder_depth=2,
        mask_layout=layout,
    )
    x_NCHW = torch.randn(2, in_channels, 64, 96, dtype=torch.float64)
    mask_NHW = random_mask([1, 4], (2, 3))
    loss = model(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
    loss.backward()

    state = reference.in_float64(model.state_dict())
    expected = reference.fcmae_loss(state, x_NCHW, mask_NHW, norm_pix_loss=norm_pix)
    expected.backward()

    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    errors = {name: relative_error(gradients[name], state[name].grad) for name in state}
    assert max(errors.values()) < 1e-10, errors


@pytest.mark.parametrize(
    ("size", "visible"),
    [((64, 64), [1]), ((96, 64), [2, 5, 1]), ((128, 96), [4] * 16), ((224, 224), [19, 19])],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"]
)
def test_packed_equals_masked(
    dtype, tolerance, size, visible, tiny_arch, randomize_grn, random_mask, relative_error
):
    model = build(tiny_arch, randomize_grn).to(dtype)
    x_NCHW = torch.randn(len(visible), 3, *size, dtype=dtype)
    mask_NHW = random_mask(visible, (size[0] // 32, size[1] // 32))
    results: dict[str, dict[str, Tensor]] = {}
    for layout in ("masked", "packed"):
        model.backbone.mask_layout = layout
        model.zero_grad()
        loss = model(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
        loss.backward()
        results[layout] = {n: p.grad.clone() for n, p in model.named_parameters()}
        results[layout]["loss"] = loss
    errors = {
        name: relative_error(results["packed"][name], value)
        for name, value in results["masked"].items()
    }
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("arch", ["atto", "tiny"])
def test_the_loss_at_initialisation_is_close_to_one(arch):
    """A target of unit variance costs 1 under a prediction of 0, and 3071/3072 of it exactly.

    The weights' std of .02 makes predictions of rms below about 0.15, independent of the target:
    their square adds at most 0.03.
    """
    model = FCMAE.build(arch)
    x_NCHW = torch.randn(2, 3, 96, 96)
    x_NCHW += torch.linspace(-2, 2, 96)[:, None] * torch.linspace(-1, 1, 96)
    loss = model(x_NCHW, mask=random_masking(2, (3, 3), 0.6), mode="loss")["loss"].item()
    assert 0.99 < loss < 1.03


def test_the_target_ignores_brightness_and_contrast(tiny_arch, randomize_grn, random_mask):
    model = build(tiny_arch, randomize_grn)
    x_NCHW = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    mask_NHW = random_mask([1, 2], (2, 2))
    pred = model.forward_decoder(model.forward_encoder(x_NCHW, mask_NHW), mask_NHW)
    first = model.forward_loss(x_NCHW, pred, mask_NHW)
    second = model.forward_loss(3 * x_NCHW + 5, pred, mask_NHW)
    assert second.item() == pytest.approx(first.item(), rel=1e-5)


def test_only_removed_cells_count(tiny_arch, randomize_grn, random_mask):
    model = build(tiny_arch, randomize_grn)
    x_NCHW = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    mask_NHW = random_mask([1, 2], (2, 2))
    pred_NHWP = torch.randn(2, 2, 2, 3072, dtype=torch.float64)
    other_NHWP = torch.where(mask_NHW[..., None], pred_NHWP, 1e3)
    loss = model.forward_loss(x_NCHW, pred_NHWP, mask_NHW)
    assert model.forward_loss(x_NCHW, other_NHWP, mask_NHW).item() == loss.item()
    assert model.forward_loss(x_NCHW, pred_NHWP + 1, mask_NHW).item() != loss.item()
    expected = reference.loss(pred_NHWP.flatten(1, 2), x_NCHW, mask_NHW)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_constant_patch_gives_a_finite_loss(tiny_arch, random_mask):
    model = FCMAE.build(tiny_arch, decoder_channels=16)
    loss = model(torch.zeros(1, 3, 64, 64), mask=random_mask([2], (2, 2)), mode="loss")["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_every_parameter_gets_a_gradient(tiny_arch, randomize_grn, random_mask):
    """Distributed training runs with find_unused_parameters=False."""
    model = build(tiny_arch, randomize_grn)
    x_NCHW = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model(x_NCHW, mask=random_mask([1, 2], (2, 2)), mode="loss")["loss"].backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_patches_hold_row_column_channel(channels, relative_error):
    """The official order `nchpwq -> nhwpqc`, read value by value by the reference."""
    x_NCHW = torch.randn(2, channels, 64, 96)
    patches_NHWP = patchify(x_NCHW, 32)
    assert patches_NHWP.shape == (2, 2, 3, 32 * 32 * channels)
    assert torch.equal(patches_NHWP.flatten(1, 2), reference.patches(x_NCHW))
    assert patches_NHWP[1, 0, 2, (5 * 32 + 7) * channels] == x_NCHW[1, 0, 5, 2 * 32 + 7]
    assert torch.equal(unpatchify(patches_NHWP, 32), x_NCHW)
    assert torch.equal(unpatchify(patchify(x_NCHW, 8), 8), x_NCHW)


def test_patchify_refuses_other_sizes():
    with pytest.raises(ValueError, match="32.*65"):
        patchify(torch.randn(1, 3, 65, 64), 32)


def test_the_methods_carry_the_names_of_mae(tiny_arch, randomize_grn, random_mask):
    model = build(tiny_arch, randomize_grn)
    x_NCHW = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    mask_NHW = random_mask([1, 2], (2, 2))
    assert torch.equal(model.unpatchify(model.patchify(x_NCHW)), x_NCHW)
    features = model.forward_encoder(x_NCHW, mask_NHW)
    assert torch.equal(features, model.backbone(x_NCHW, mask_NHW)[-1])
    loss = model.forward_loss(x_NCHW, model.forward_decoder(features, mask_NHW), mask_NHW)
    assert loss.item() == model(x_NCHW, mask=mask_NHW, mode="loss")["loss"].item()
    drawn = model.random_masking(4, (7, 7), 0.6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        drawn, random_masking(4, (7, 7), 0.6, generator=torch.Generator().manual_seed(1))
    )


def test_forward_has_the_signature_of_openmmlab():
    parameters = inspect.signature(FCMAE.forward).parameters
    assert list(parameters) == ["self", "inputs", "data_samples", "mask", "mode"]
    assert parameters["mode"].default == "tensor"


def test_tensor_mode_gives_dense_features(tiny_arch, randomize_grn, relative_error):
    model = build(tiny_arch, randomize_grn)
    x_NCHW = torch.randn(1, 3, 75, 98, dtype=torch.float64)
    (feature,) = model(x_NCHW)
    state = reference.section(reference.in_float64(model.state_dict()), "backbone.")
    assert relative_error(feature, reference.encode(state, x_NCHW)[-1]) < 1e-12


@pytest.mark.parametrize("norm_pix", [True, False])
def test_predict_mode_undoes_the_normalisation_of_patches(
    norm_pix, tiny_arch, randomize_grn, random_mask, relative_error
):
    model = build(tiny_arch, randomize_grn, norm_pix=norm_pix).eval()
    x_NCHW = 2 + 3 * torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mask_NHW = random_mask([1, 4], (2, 3))
    with torch.no_grad():
        picture_NCHW = model(x_NCHW, mask=mask_NHW, mode="predict")
    assert picture_NCHW.shape == x_NCHW.shape

    state = model.state_dict()
    features = reference.encode(reference.section(state, "backbone."), x_NCHW, mask_NHW)[-1]
    pred_NLD = reference.decode(reference.section(state, "neck."), features, mask_NHW)
    pixels_NLD = reference.patches(x_NCHW)
    if norm_pix:
        std, mean = torch.std_mean(pixels_NLD, dim=-1, keepdim=True)
        pred_NLD = pred_NLD * (std**2 + 1e-6).sqrt() + mean
    assert relative_error(reference.patches(picture_NCHW), pred_NLD) < 1e-10


def test_a_plan_is_as_good_as_a_mask(tiny_arch, randomize_grn, random_mask):
    model = build(tiny_arch, randomize_grn)
    x_NCHW = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    mask_NHW = random_mask([1, 2], (2, 2))
    for mode in ("loss", "predict"):
        by_mask = model(x_NCHW, mask=mask_NHW, mode=mode)
        by_plan = model(x_NCHW, mask=VisibleCells.from_mask(mask_NHW), mode=mode)
        if mode == "loss":
            by_mask, by_plan = by_mask["loss"], by_plan["loss"]
        assert torch.equal(by_mask, by_plan)


def test_the_decoder_sees_features_of_visible_cells_only(random_mask, randomize_grn):
    decoder = randomize_grn(FCMAEDecoder(8, num_channels=16))
    features_NCHW = torch.randn(2, 8, 2, 3)
    mask_NHW = random_mask([1, 4], (2, 3))
    other_NCHW = torch.where(mask_NHW[:, None], torch.randn(2, 8, 2, 3), features_NCHW)
    assert torch.equal(decoder(features_NCHW, mask_NHW), decoder(other_NCHW, mask_NHW))


def test_the_initialisation_of_the_decoder():
    decoder = FCMAEDecoder(320)
    state = decoder.state_dict()
    assert {key.split(".")[0] for key in state} == {
        "projection",
        "mask_token",
        "blocks",
        "prediction",
    }
    for name, value in state.items():
        if name.endswith("bias") or "grn" in name:
            assert (value == 0).all(), name
        elif name == "mask_token" or value.ndim > 1:
            tolerance = 3 * 0.02 / (2 * value.numel()) ** 0.5
            assert value.std().item() == pytest.approx(0.02, abs=tolerance), name
        else:
            assert (value == 1).all(), name


def test_without_mask_there_is_no_loss(tiny_arch):
    model = FCMAE.build(tiny_arch, decoder_channels=16)
    for mode in ("loss", "predict"):
        with pytest.raises(ValueError, match="(?s)mask"):
            model(torch.randn(1, 3, 64, 64), mode=mode)


def test_an_unknown_mode_is_named(tiny_arch, random_mask):
    model = FCMAE.build(tiny_arch, decoder_channels=16)
    with pytest.raises(ValueError, match="(?=.*training)(?=.*predict)"):
        model(torch.randn(1, 3, 64, 64), mask=random_mask([1], (2, 2)), mode="training")


def test_a_mask_that_removes_nothing_has_no_loss(tiny_arch):
    """0 / 0 must not reach the optimizer as NaN."""
    model = FCMAE.build(tiny_arch, decoder_channels=16)
    with pytest.raises(ValueError, match="(?i)remove"):
        model(torch.randn(1, 3, 64, 64), mask=torch.zeros(1, 2, 2, dtype=torch.bool), mode="loss")


def test_parts_can_be_given(tiny_arch, random_mask):
    backbone = ConvNeXtV2(arch=tiny_arch, output_norms=False, gap_before_final_norm=False)
    model = FCMAE(backbone, FCMAEDecoder(32, num_channels=16), FCMAEHead())
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "neck"}
    loss = model(torch.randn(1, 3, 64, 64), mask=random_mask([2], (2, 2)), mode="loss")
    assert set(loss) == {"loss"}


@pytest.mark.parametrize(
    ("backbone", "decoder", "message"),
    [
        (dict(), dict(), "gap_before_final_norm=False"),
        (dict(gap_before_final_norm=False), dict(), "output_norms=False"),
        (dict(gap_before_final_norm=False, output_norms=False, out_indices=2), dict(), "out_ind"),
        (None, dict(in_channels=16), "in_channels must be 32, .* got 16"),
        (None, dict(image_channels=1), "image_channels must be 3, .* got 1"),
    ],
)
def test_parts_that_do_not_fit(backbone, decoder, message, tiny_arch):
    raw = dict(gap_before_final_norm=False, output_norms=False)
    encoder = ConvNeXtV2(tiny_arch, **(raw if backbone is None else backbone))
    neck = FCMAEDecoder(**{"in_channels": 32, "num_channels": 16, **decoder})
    with pytest.raises(ValueError, match=message):
        FCMAE(encoder, neck, FCMAEHead())
