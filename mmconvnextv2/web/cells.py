"""The mask that a visitor sets: drawn at random, then changed cell by cell.

Shape suffixes: H and W pixels, h and w cells of 32 x 32 pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from mmconvnextv2.nn import random_masking

_LINE = (255, 255, 255)
_LINE_OPACITY = 0.35


def fit(image: Image.Image, size_HW: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale a picture to cover a size, and cut out its middle.

    Args:
        image: RGB picture.
        size_HW: Height and width in pixels.

    Returns:
        uint8 array (H, W, 3), RGB.
    """
    height, width = size_HW
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


def draw_mask(
    grid_hw: tuple[int, int], ratio: float, seed: int, cell_scale: int = 1
) -> NDArray[np.bool_]:
    """Draw a mask as pre-training draws it, with at least one square visible and one removed.

    Args:
        grid_hw: Cells in a column and in a row, at least two squares in all.
        ratio: Share to remove, 0 to 1.
        seed: Equal seeds give equal masks.
        cell_scale: Side in cells of the squares that are drawn.

    Returns:
        bool (h, w), True = removed.
    """
    squares = grid_hw[0] * grid_hw[1] // cell_scale**2
    # int(squares * (1 - ratio)) squares stay visible: one at the upper bound, all but one at the
    # lower one. The small term keeps 80 % of 25 from becoming 21.
    ratio = min(max(ratio - 1e-9, 0.5 / squares), 1 - 1.5 / squares)
    generator = torch.Generator().manual_seed(seed)
    mask_Nhw = random_masking(1, grid_hw, ratio, cell_scale=cell_scale, generator=generator)
    return mask_Nhw[0].numpy()


def toggle(mask_hw: NDArray[np.bool_], cell: tuple[int, int]) -> NDArray[np.bool_]:
    """Show a removed cell, or remove a visible one.

    Args:
        mask_hw: The mask; it stays as it is.
        cell: Row and column.

    Returns:
        The new mask.

    Raises:
        ValueError: It was the last visible cell.
    """
    changed_hw = mask_hw.copy()
    changed_hw[cell] ^= True
    if changed_hw.all():
        raise ValueError("one cell has to stay visible: show another one first")
    return changed_hw


def cell_at(
    point_xy: tuple[float, float], picture_size: tuple[int, int], grid_hw: tuple[int, int]
) -> tuple[int, int]:
    """Row and column of the cell under a point of the shown picture.

    Args:
        point_xy: Pixels from the left and from the top; outside, the nearest cell is meant.
        picture_size: Width and height of the shown picture.
        grid_hw: Cells in a column and in a row.
    """
    (x, y), (width, height), (rows, columns) = point_xy, picture_size, grid_hw
    row, column = int(y * rows // height), int(x * columns // width)
    return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)


def enlarge(picture_HWC: NDArray[np.uint8], scale: int) -> Image.Image:
    """Repeat each pixel `scale` times along both axes, as the grids of `reconstruct` do."""
    return Image.fromarray(picture_HWC.repeat(scale, axis=0).repeat(scale, axis=1))


def draw_cells(picture: Image.Image, grid_hw: tuple[int, int]) -> Image.Image:
    """Draw thin lines between the cells, so that one sees what can be clicked."""
    lines = Image.new("L", picture.size)
    draw = ImageDraw.Draw(lines)
    rows, columns = grid_hw
    opacity = round(255 * _LINE_OPACITY)
    for row in range(1, rows):
        y = row * picture.height // rows
        draw.line((0, y, picture.width, y), fill=opacity)
    for column in range(1, columns):
        x = column * picture.width // columns
        draw.line((x, 0, x, picture.height), fill=opacity)
    drawn = picture.copy()
    drawn.paste(_LINE, (0, 0), lines)
    return drawn


def describe(mask_hw: NDArray[np.bool_]) -> str:
    """How much is removed, in words."""
    return f"{mask_hw.sum()} of {mask_hw.size} cells removed ({mask_hw.mean():.0%})"
