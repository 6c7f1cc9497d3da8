"""Overlays, pixel by pixel against loops."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmconvnextv2.visualization.overlays import (
    contact_sheet,
    draw_caption,
    draw_instances,
    draw_semantic_map,
)

pytestmark = pytest.mark.unit


def grey(height: int = 6, width: int = 8, value: int = 100) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), value, np.uint8))


def test_semantic_map_tints_classes_and_leaves_the_rest() -> None:
    labels = np.zeros((6, 8), np.int64)
    labels[1:3, 2:5] = 1
    labels[4, 4] = 255
    picture = np.asarray(draw_semantic_map(grey(), labels, [[0, 0, 0], [200, 0, 50]], scale=2))
    for y in range(12):
        for x in range(16):
            tinted = labels[y // 2, x // 2] == 1
            expected = [0.55 * 100 + 0.45 * c for c in (200, 0, 50)] if tinted else [100] * 3
            np.testing.assert_allclose(picture[y, x], expected, atol=0.51)


def test_instances() -> None:
    masks = np.zeros((1, 40, 40), bool)
    masks[0, 20:30, 20:30] = True
    boxes = np.array([[20.0, 20.0, 30.0, 30.0]])
    picture = np.asarray(draw_instances(grey(40, 40), boxes, masks, ["7"], [3], scale=2))
    assert picture.shape == (80, 80, 3)
    assert (picture[50, 50] != 100).any(), "inside the mask"
    assert tuple(picture[40, 50]) == (0, 130, 200), "the upper edge of the box, in the class colour"
    assert (picture[70:, 70:] == 100).all(), "far from it"


def test_nothing_found_leaves_the_image() -> None:
    none = draw_instances(grey(), np.zeros((0, 4)), np.zeros((0, 6, 8), bool), [], [], scale=1)
    assert (np.asarray(none) == 100).all()


def test_caption_is_in_the_corner() -> None:
    picture = np.asarray(draw_caption(grey(60, 80), "digit_3", scale=1))
    assert (picture[:20, :40] != 100).any()
    assert (picture[30:] == 100).all()


def test_sheet() -> None:
    images = [grey(value=v) for v in (10, 20, 30)]
    sheet = np.asarray(contact_sheet(images, columns=2, gap=4))
    assert sheet.shape == (2 * 10 + 4, 2 * 12 + 4, 3)
    assert [sheet[5, 5, 0], sheet[5, 18, 0], sheet[16, 5, 0], sheet[16, 18, 0]] == [10, 20, 30, 255]
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([grey(), grey(5)], 2)
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([], 2)
