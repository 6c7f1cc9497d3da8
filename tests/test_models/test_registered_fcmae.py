"""The registered FCMAE: built from a config, trained by train_step, predicting data samples."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
from mmengine.optim import OptimWrapper
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mmconvnextv2 import nn as plain
from mmconvnextv2.models import FCMAE

pytestmark = pytest.mark.unit


def config(in_channels: int = 3, **backbone) -> dict:
    """A narrow FCMAE, written as a config file would."""
    mean = [123.675, 116.28, 103.53] if in_channels == 3 else [127.5] * in_channels
    std = [58.395, 57.12, 57.375] if in_channels == 3 else [60.0] * in_channels
    return dict(
        type="mmpretrain.FCMAE",
        data_preprocessor=dict(
            type="mmpretrain.FCMAEDataPreprocessor", mean=mean, std=std, mask_ratio=0.6
        ),
        backbone=dict(
            type="mmpretrain.ConvNeXtV2",
            arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]),
            in_channels=in_channels,
            gap_before_final_norm=False,
            output_norms=False,
            **backbone,
        ),
        neck=dict(
            type="mmpretrain.FCMAEDecoder",
            in_channels=32,
            image_channels=in_channels,
            num_channels=16,
        ),
        head=dict(type="mmpretrain.FCMAEHead"),
    )


def batch(count: int = 4, channels: int = 3) -> dict:
    """Smooth uint8 images and their data samples, as a loader delivers them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(96, 96), mode="bicubic")
    inputs = list((255 * smooth.clamp(0, 1)).to(torch.uint8))
    return dict(inputs=inputs, data_samples=[DataSample() for _ in range(count)])


def test_it_is_both_the_plain_and_the_openmmlab_algorithm():
    model = MODELS.build(config())
    assert type(model) is FCMAE
    assert isinstance(model, plain.FCMAE) and isinstance(model, BaseSelfSupervisor)
    twin = plain.FCMAE.build(
        dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]), decoder_channels=16
    )
    twin.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(twin.state_dict(), strict=True)


@pytest.mark.parametrize("in_channels", [3, 1, 5])
def test_three_steps_of_training(in_channels):
    model = MODELS.build(config(in_channels)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    wrapper = OptimWrapper(optimizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(3):
        torch.manual_seed(0)  # one mask, so that the loss has to fall
        logged = model.train_step(batch(channels=in_channels), wrapper)
        losses.append(logged["loss"].item())
    assert set(logged) == {"loss"}
    assert losses[2] < losses[1] < losses[0]
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_the_loss_of_a_step_is_that_of_the_reference(randomize_grn):
    model = randomize_grn(MODELS.build(config())).double().train()
    torch.manual_seed(3)
    data = model.data_preprocessor(batch(2), training=True)
    state = reference.in_float64(model.state_dict())
    expected = reference.fcmae_loss(state, data["inputs"].double(), data["mask"])
    torch.manual_seed(3)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    logged = model.train_step(batch(2), wrapper)
    # The images are normalised in float32, whatever the network computes in.
    assert logged["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("mode", ["tensor", "loss", "predict"])
def test_the_modes_agree_with_the_plain_class(mode, randomize_grn):
    model = randomize_grn(MODELS.build(config())).eval()
    twin = plain.FCMAE.build(
        dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]), decoder_channels=16
    )
    twin.load_state_dict(model.state_dict())
    data = model.data_preprocessor(batch())
    with torch.no_grad():
        ours = model(**data, mode=mode)
        wanted = twin.eval()(**data, mode=mode)
    if mode == "tensor":
        assert torch.equal(ours[0], wanted[0])
    elif mode == "loss":
        assert torch.equal(ours["loss"], wanted["loss"])
    else:
        assert ours == data["data_samples"]
        for n, sample in enumerate(ours):
            assert torch.equal(sample.reconstruction, wanted[n])
            assert torch.equal(sample.mask, data["mask"][n])


def test_prediction_makes_samples_where_there_are_none():
    model = MODELS.build(config()).eval()
    with torch.no_grad():
        samples = model.test_step(dict(inputs=batch(2)["inputs"]))
    assert len(samples) == 2
    for sample in samples:
        assert isinstance(sample, DataSample)
        assert sample.reconstruction.shape == (3, 96, 96)
        assert sample.mask.shape == (3, 3) and sample.mask.dtype == torch.bool


@pytest.mark.parametrize("mode", ["loss", "predict"])
def test_a_mask_is_needed(mode):
    model = MODELS.build(config())
    with pytest.raises(ValueError, match="mask"):
        model(torch.randn(1, 3, 64, 64), mode=mode)


def test_a_decoder_that_does_not_fit_is_named_at_build():
    wrong = config()
    wrong["neck"]["in_channels"] = 48
    with pytest.raises(ValueError, match="(?=.*48)(?=.*32)"):
        MODELS.build(wrong)


def test_init_weights_draws_nothing():
    model = MODELS.build(config())
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_config_is_not_changed():
    given = config()
    before = copy.deepcopy(given)
    MODELS.build(given)
    assert given == before


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_head_takes_its_target_from_the_config(norm_pix, randomize_grn):
    settings = config()
    settings["head"]["norm_pix"] = norm_pix
    model = randomize_grn(MODELS.build(settings)).double()
    x_NCHW = 2 + 3 * torch.randn(1, 3, 64, 64, dtype=torch.float64)
    mask_NHW = torch.tensor([[[True, False], [False, True]]])
    loss = model(x_NCHW, mask=mask_NHW, mode="loss")["loss"].item()
    state = reference.in_float64(model.state_dict())
    expected = reference.fcmae_loss(state, x_NCHW, mask_NHW, norm_pix_loss=norm_pix).item()
    assert loss == pytest.approx(expected, rel=1e-12)


def test_layouts_are_chosen_in_the_config_and_after(randomize_grn, relative_error):
    packed = randomize_grn(MODELS.build(config())).double()
    masked = MODELS.build(config(mask_layout="masked")).double()
    masked.load_state_dict(packed.state_dict())
    assert (packed.backbone.mask_layout, masked.backbone.mask_layout) == ("packed", "masked")
    x_NCHW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mask_NHW = plain.random_masking(2, (2, 3), 0.6)
    first = packed(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
    assert relative_error(first, masked(x_NCHW, mask=mask_NHW, mode="loss")["loss"]) < 1e-12
    packed.backbone.mask_layout = "masked"
    second = packed(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
    assert relative_error(second, first) < 1e-12
