"""A grid of reconstructions cut into strips: the panels that went in come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmconvnextv2.visualization.reconstruction import reconstruction_grid, reconstruction_panels
from mmconvnextv2.visualization.strips import split_grid

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("height,width", [(64, 96), (224, 224)])
def test_each_strip_has_the_four_panels_of_its_image(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 3, 3, height, width, generator=generator) * 255
    mask = torch.rand(3, height // 32, width // 32, generator=generator) < 0.5
    arguments = (x, y, mask, torch.zeros(3), torch.ones(3))
    strips = split_grid(reconstruction_grid(*arguments), height, width)
    panels_NPHWC = reconstruction_panels(*arguments)
    assert len(strips) == 3
    for strip, panels_PHWC in zip(strips, panels_NPHWC, strict=True):
        pixels = np.asarray(strip)
        scale = pixels.shape[0] // height
        opaque = pixels[0, :, 3] > 0
        assert opaque.sum() == 4 * width * scale and not opaque.all()
        shown = pixels[::scale, opaque][:, ::scale, :3]
        np.testing.assert_array_equal(shown, np.concatenate(list(panels_PHWC), axis=1))


def test_another_picture_is_refused() -> None:
    x = torch.zeros(1, 3, 64, 64)
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    grid = reconstruction_grid(x, x, mask, torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="no grid of reconstructions of images of 160x160 pixels"):
        split_grid(grid, 160, 160)
