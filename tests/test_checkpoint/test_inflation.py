"""Stems and predictions for other numbers of channels: what stays the same, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmconvnextv2.checkpoint import StateDictMismatch
from mmconvnextv2.checkpoint.inflation import inflate_channels, inflate_prediction, inflate_stem
from mmconvnextv2.models import ConvNeXtV2
from mmconvnextv2.nn import FCMAE, patchify

pytestmark = pytest.mark.unit

DENSE = dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False, output_norms=False)


@pytest.fixture
def published(
    tiny_arch: dict, tmp_path: Path, randomize_grn: Callable[[nn.Module], nn.Module]
) -> tuple[Path, ConvNeXtV2]:
    """A 3-channel encoder and its file."""
    net = randomize_grn(ConvNeXtV2(tiny_arch, **DENSE)).eval()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "rgb.pth")
    return tmp_path / "rgb.pth", net


def inflated(path: Path, arch: dict, in_channels: int, mode: str) -> ConvNeXtV2:
    init_cfg = dict(type="Pretrained", checkpoint=str(path), inflate_stem=mode)
    net = ConvNeXtV2(arch, in_channels, init_cfg=init_cfg, **DENSE)
    net.init_weights()
    return net.eval()


def assert_same_features(net: nn.Module, x: Tensor, other: nn.Module, y: Tensor) -> None:
    with torch.no_grad():
        for actual, expected in zip(net(x), other(y), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("in_channels", [1, 2])
def test_a_grey_image_gives_the_features_of_its_repetition(
    mode: str, in_channels: int, tiny_arch: dict, published: tuple[Path, ConvNeXtV2]
) -> None:
    path, rgb = published
    grey = torch.randn(2, 1, 64, 64)
    net = inflated(path, tiny_arch, in_channels, mode)
    assert_same_features(net, grey.expand(-1, in_channels, -1, -1), rgb, grey.expand(-1, 3, -1, -1))


def test_mean_keeps_the_response_to_the_first_three_channels(
    tiny_arch: dict, published: tuple[Path, ConvNeXtV2]
) -> None:
    path, rgb = published
    net = inflated(path, tiny_arch, 5, "mean")
    colour = torch.randn(2, 3, 64, 64)
    assert_same_features(net, torch.cat([colour, torch.zeros(2, 2, 64, 64)], 1), rgb, colour)
    weight = net.downsample_layers[0][0].weight
    assert torch.equal(weight[:, :3], rgb.downsample_layers[0][0].weight)
    for channel in (3, 4):
        torch.testing.assert_close(weight[:, channel], weight[:, :3].mean(dim=1))


@pytest.mark.parametrize("in_channels", [4, 5, 6, 16])
def test_sum_keeps_the_response_to_equal_channels(
    in_channels: int, tiny_arch: dict, published: tuple[Path, ConvNeXtV2]
) -> None:
    path, rgb = published
    net = inflated(path, tiny_arch, in_channels, "sum")
    grey = torch.randn(2, 1, 64, 64)
    assert_same_features(net, grey.expand(-1, in_channels, -1, -1), rgb, grey.expand(-1, 3, -1, -1))
    weight = net.downsample_layers[0][0].weight
    if in_channels == 6:  # what timm does where each channel is repeated equally often
        rgb_weight = rgb.downsample_layers[0][0].weight
        torch.testing.assert_close(weight, torch.cat([rgb_weight, rgb_weight], 1) * 3 / 6)


def test_the_decoder_predicts_the_grey_image_of_what_it_predicted(tiny_arch: dict) -> None:
    """The mean of three predicted patches is the patch of the mean of the three channels."""
    images = torch.randn(1, 3, 32, 32)
    patch = patchify(images, 32).flatten()
    prediction = nn.Linear(5, 3 * 32 * 32)
    features = torch.randn(5)
    with torch.no_grad():
        prediction.bias += patch - prediction(features)  # so that it predicts these images
        weight = inflate_prediction(prediction.weight, 1)
        bias = inflate_prediction(prediction.bias, 1)
        torch.testing.assert_close(
            weight @ features + bias,
            patchify(images.mean(dim=1, keepdim=True), 32).flatten(),
            rtol=1e-4,
            atol=1e-5,
        )
        for mode, last in (("mean", images.mean(dim=1)), ("sum", images[:, 0])):
            weight = inflate_prediction(prediction.weight, 4, mode)
            bias = inflate_prediction(prediction.bias, 4, mode)
            four = torch.cat([images, last[:, None]], dim=1)
            expected = patchify(four, 32).flatten()
            torch.testing.assert_close(weight @ features + bias, expected, rtol=1e-4, atol=1e-5)


def test_a_whole_model_changes_in_stem_and_prediction_alone(tiny_arch: dict) -> None:
    state = FCMAE.build(tiny_arch, decoder_channels=16).state_dict()
    five = FCMAE.build(tiny_arch, in_channels=5, decoder_channels=16)
    fitted = inflate_channels(state, 5, "sum")
    five.load_state_dict(fitted)
    changed = {key for key in state if fitted[key] is not state[key]}
    assert changed == {
        "backbone.downsample_layers.0.0.weight",
        "neck.prediction.weight",
        "neck.prediction.bias",
    }


@pytest.mark.parametrize("in_channels", [1, 3, 7])
def test_the_kind_of_number_and_the_original_stay(in_channels: int) -> None:
    weight = torch.randn(4, 3, 4, 4, dtype=torch.float16)
    before = weight.clone()
    for mode in ("mean", "sum"):
        new = inflate_stem(weight, in_channels, mode)
        assert (new.dtype, new.shape) == (torch.float16, (4, in_channels, 4, 4))
    assert torch.equal(weight, before)


def test_bad_arguments_are_refused(tiny_arch: dict, published: tuple[Path, ConvNeXtV2]) -> None:
    with pytest.raises(ValueError, match="one of mean, sum, got 'median'"):
        inflated(published[0], tiny_arch, 1, "median")
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        inflate_stem(torch.zeros(4, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="1024 rows for each channel, this tensor has 1000"):
        inflate_prediction(torch.zeros(1000), 1)


def test_without_a_mode_other_channels_are_refused_with_the_remedy(
    tiny_arch: dict, published: tuple[Path, ConvNeXtV2]
) -> None:
    net = ConvNeXtV2(
        tiny_arch, 1, init_cfg=dict(type="Pretrained", checkpoint=str(published[0])), **DENSE
    )
    before = net.downsample_layers[0][0].weight.clone()
    with pytest.raises(StateDictMismatch, match=r"from 3 to 1 channels.*inflate_stem='mean'"):
        net.init_weights()
    assert torch.equal(net.downsample_layers[0][0].weight, before)
