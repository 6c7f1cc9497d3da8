"""Drawing the random mask of FCMAE.

Shape suffixes: N batch, H and W the grid of cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.nn.cells import enlarge_mask


def check_mask_ratio(mask_ratio: Any) -> None:
    """Check a share of cells to remove.

    Raises:
        ValueError: it is no number strictly between 0 and 1.
    """
    if not (isinstance(mask_ratio, int | float) and 0 < mask_ratio < 1):
        raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {mask_ratio!r}")


def random_masking(
    batch_size: int,
    grid_size: tuple[int, int],
    mask_ratio: float,
    *,
    cell_scale: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one random mask per image, each with the same number of visible cells.

    Of the ``L`` squares that are drawn, ``int(L * (1 - mask_ratio))`` stay visible: 19 of 49 for
    a 224-pixel image at the ratio 0.6 (paper, section 3, "Masking"). The draw happens on the CPU,
    so that one seed gives one mask on every device.

    Args:
        batch_size: number of images N.
        grid_size: cells per column and per row, ``(H / 32, W / 32)``.
        mask_ratio: share of the cells to remove, strictly between 0 and 1.
        cell_scale: side of one drawn square in cells; 2 removes squares of 64 pixels. Both grid
            sides must be multiples of it.
        generator: CPU generator to draw from; torch's global one when None.

    Returns:
        Boolean tensor ``(N, H / 32, W / 32)`` on the CPU, True where a cell is removed.

    Raises:
        ValueError: the ratio is outside (0, 1), leaves no cell visible or removes none, or the
            grid is not a multiple of ``cell_scale``.
    """
    height, width = grid_size
    check_mask_ratio(mask_ratio)
    check_count("batch_size", batch_size, least=0)
    check_count("cell_scale", cell_scale)
    for side in grid_size:
        check_count("grid_size", side)
    if height % cell_scale or width % cell_scale:
        raise ValueError(
            f"a grid of {height}x{width} cells cannot be masked in squares of {cell_scale} cells: "
            f"both sides must be multiples of cell_scale"
        )
    coarse_height, coarse_width = height // cell_scale, width // cell_scale
    num_squares = coarse_height * coarse_width
    num_visible = int(num_squares * (1 - mask_ratio))
    if num_visible in (0, num_squares):
        what = "leaves nothing visible" if num_visible == 0 else "removes nothing"
        raise ValueError(
            f"mask_ratio {mask_ratio} {what}: it keeps {num_visible} of {num_squares} squares "
            f"({coarse_height}x{coarse_width}); change the ratio or use larger images"
        )
    order = torch.rand(batch_size, num_squares, generator=generator).argsort(dim=1)
    mask = torch.ones(batch_size, num_squares, dtype=torch.bool)
    mask.scatter_(1, order[:, :num_visible], False)
    mask_NHW = mask.view(batch_size, coarse_height, coarse_width)
    return enlarge_mask(mask_NHW, cell_scale)
