"""Pairs of images side by side, to judge by eye whether they are copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmconvnextv2.visualization.overlays import contact_sheet, draw_caption

_SIDE = 160
_GAP = 4


def draw_pairs(pairs: Sequence[tuple[NDArray, NDArray, str]], columns: int = 3) -> Image.Image:
    """Lay pairs out in rows, each with a caption.

    Args:
        pairs: two images, ``(H, W)`` or ``(H, W, C)`` of any range, and a line of text.
        columns: pairs in a row.

    Raises:
        ValueError: there is no pair.
    """
    return contact_sheet([_draw_pair(*pair) for pair in pairs], columns)


def to_picture(image: NDArray) -> Image.Image:
    """Make an image of any range and number of channels visible.

    8-bit images are shown as they are; of others the range between the 1st and the 99th percentile
    is stretched to black and white. The first three channels are shown, as grey where there are
    fewer. Values that are not finite are black.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, C in the order RGB where it is 3.
    """
    values_HWC = image.reshape(*image.shape[:2], -1)
    values_HWC = values_HWC[..., : 3 if values_HWC.shape[2] >= 3 else 1].astype(np.float64)
    finite = np.isfinite(values_HWC)
    low, high = 0.0, 255.0
    if image.dtype != np.uint8 and finite.any():
        low, high = np.percentile(values_HWC[finite], (1, 99))
    scaled = np.where(finite, (values_HWC - low) / max(high - low, 1e-12), 0).clip(0, 1)
    pixels = (255 * scaled).round().astype(np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())


def _draw_pair(first: NDArray, second: NDArray, text: str) -> Image.Image:
    canvas = Image.new("RGB", (2 * _SIDE + _GAP, _SIDE), (255, 255, 255))
    for i, image in enumerate((first, second)):
        picture = to_picture(image)
        picture = picture.resize(_fit(picture.size), Image.Resampling.BICUBIC)
        x = i * (_SIDE + _GAP) + (_SIDE - picture.width) // 2
        canvas.paste(picture, (x, (_SIDE - picture.height) // 2))
    return draw_caption(canvas, text, scale=1)


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    factor = _SIDE / max(size)
    width, height = size
    return max(1, round(width * factor)), max(1, round(height * factor))
