"""Pictures of images that are not 8-bit RGB: range and channels, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmconvnextv2.models import FCMAE
from mmconvnextv2.visualization import draw_reconstructions
from mmconvnextv2.visualization.reconstruction import (
    GridLayout,
    reconstruction_panels,
    unnormalize,
)

pytestmark = pytest.mark.unit


def test_the_range_becomes_black_to_white():
    values = torch.tensor([1000.0, 3000.0, 5000.0, 9000.0, -50.0, float("nan")])
    x_NCHW = ((values - 2500) / 800).view(1, 1, 2, 3)
    shown = unnormalize(x_NCHW, [2500.0], [800.0], value_range=([1000.0], [5000.0]))
    assert shown[0, ..., 0].tolist() == [[0, 128, 255], [255, 0, 0]]
    assert (shown == shown[..., :1]).all()


def test_each_channel_has_its_own_range_and_a_constant_one_is_black():
    x_NCHW = torch.tensor([10.0, 0.5, 7.0]).view(1, 3, 1, 1)
    low, high = torch.tensor([0.0, 0.0, 7.0]), torch.tensor([20.0, 1.0, 7.0])
    shown = unnormalize(x_NCHW, [0.0] * 3, [1.0] * 3, value_range=(low, high))
    assert shown[0, 0, 0].tolist() == [128, 128, 0]


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(None, [0, 1, 2]), ([4, 0, 2], [4, 0, 2]), ([3], [3, 3, 3]), ([1, 4], [1, 4, None])],
)
def test_chosen_channels(channels, expected):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (1, 5, 32, 32)).astype(np.float32)
    shown = unnormalize(torch.from_numpy(pixels), [0.0] * 5, [1.0] * 5, channels=channels)
    for place, source in enumerate(expected):
        wanted = 0 if source is None else pixels[0, source]
        assert (shown[0, ..., place] == wanted).all()


@pytest.mark.parametrize("channels", [[], [5], [-1], [0, 1, 2, 3]])
def test_channels_that_are_not_there_are_named(channels):
    with pytest.raises(ValueError, match="numbers from 0 to 4"):
        unnormalize(torch.zeros(1, 5, 32, 32), [0.0] * 5, [1.0] * 5, channels=channels)


def test_panels_show_range_and_channel_in_every_column():
    x_NCHW = torch.full((1, 4, 32, 64), 0.25)
    prediction = torch.full((1, 4, 32, 64), 0.75)
    mask_Nhw = torch.tensor([[[True, False]]])
    panels = reconstruction_panels(
        x_NCHW, prediction, mask_Nhw, [0.0] * 4, [1.0] * 4, ([0.0] * 4, [1.0] * 4), [3]
    )
    original, masked, predicted, composite = panels[0, :, 0, :, 0]
    assert (original == 64).all() and (predicted == 191).all()
    assert (masked[:32] == 127).all() and (masked[32:] == 64).all()
    assert (composite[:32] == 191).all() and (composite[32:] == 64).all()


def test_draw_takes_the_range_from_the_preprocessor(tiny_arch):
    model = FCMAE(
        data_preprocessor=dict(
            type="FCMAEDataPreprocessor",
            mean=[30_000.0],
            std=[9_000.0],
            clip=([10_000.0], [60_000.0]),
        ),
        backbone=dict(
            type="ConvNeXtV2",
            arch=tiny_arch,
            in_channels=1,
            gap_before_final_norm=False,
            output_norms=False,
        ),
        neck=dict(
            type="FCMAEDecoder",
            in_channels=tiny_arch["channels"][-1],
            image_channels=1,
            num_channels=16,
        ),
    )
    image = torch.linspace(10_000, 60_000, 96).expand(1, 96, 96)
    grid = np.asarray(draw_reconstructions(model, [image]))
    layout = GridLayout.for_images(1, 96, 96)
    left, top = layout.corner(0, 0)
    row = grid[top, left : left + 96 * layout.scale : layout.scale, 0].astype(int)
    assert row[0] == 0 and row[-1] == 255
    assert np.abs(np.diff(row) - 255 / 95).max() <= 1
