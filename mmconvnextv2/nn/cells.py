"""The plan of a masked batch: which cells are visible, and where their positions lie.

Shape suffixes: N batch, H and W the grid of cells, M visible cells of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CELL_SIZE = 32
"""Side of a cell in pixels: the unit of masking, and the total stride of the network."""

STAGE_SIDES = (8, 4, 2, 1)
"""Positions along the side of one cell in stages 1 to 4."""


def enlarge_mask(mask_NHW: Tensor, side: int) -> Tensor:
    """A mask at a finer resolution: each entry becomes a square of `side` times `side` equal ones.

    Args:
        mask_NHW: ``(N, H, W)``, of any dtype.
        side: how often to repeat each entry along both axes.

    Returns:
        ``(N, H * side, W * side)``.
    """
    return mask_NHW.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)


@dataclass(frozen=True, eq=False)
class VisibleCells:
    """What the masked layouts share, built once a batch from the mask.

    Cells are numbered 0 to M - 1, sorted by image, row and column. Building the plan reads the
    counts back from the device and waits for it: build it outside compiled regions.

    Attributes:
        mask_NHW: the mask, True where a cell is removed.
        image_M: image of each visible cell.
        row_M: row of each visible cell in its image's grid.
        column_M: column of each visible cell in its image's grid.
        offsets: ``(N + 1,)``, the cells of image n are ``offsets[n]`` to ``offsets[n + 1] - 1``.
        counts: number of visible cells of each image, as Python integers.
        equal_count: visible cells per image where all images have the same number, else None.
        positions: for each side s of `STAGE_SIDES` the rows of a flat ``(N * H * s * W * s, C)``
            feature map that visible positions occupy, in the order of a ``(M, s, s)`` tensor.
    """

    mask_NHW: Tensor
    image_M: Tensor
    row_M: Tensor
    column_M: Tensor
    offsets: Tensor
    counts: tuple[int, ...]
    equal_count: int | None
    positions: dict[int, Tensor]

    @classmethod
    def from_mask(cls, mask_NHW: Tensor) -> VisibleCells:
        """Build the plan.

        Args:
            mask_NHW: boolean ``(N, H / 32, W / 32)``, True where a cell is removed.

        Raises:
            ValueError: the mask is not boolean, not three-dimensional, or hides all of an image.
        """
        if not isinstance(mask_NHW, Tensor) or mask_NHW.dtype != torch.bool:
            given = mask_NHW.dtype if isinstance(mask_NHW, Tensor) else type(mask_NHW).__name__
            raise ValueError(f"a mask must be a boolean tensor (True = removed), got {given}")
        if mask_NHW.dim() != 3:
            raise ValueError(
                f"a mask must have the shape (N, H / {CELL_SIZE}, W / {CELL_SIZE}), "
                f"got {tuple(mask_NHW.shape)}"
            )
        image_M, row_M, column_M = (~mask_NHW).nonzero(as_tuple=True)
        counts_N = (~mask_NHW).sum(dim=(1, 2))
        counts = tuple(counts_N.tolist())
        if 0 in counts:
            raise ValueError(
                f"every image needs at least one visible cell, but the mask removes all of "
                f"image {counts.index(0)}"
            )
        offsets = torch.cat([counts_N.new_zeros(1), counts_N.cumsum(0)])
        positions = {
            side: _positions(mask_NHW.shape, image_M, row_M, column_M, side) for side in STAGE_SIDES
        }
        equal_count = counts[0] if len(set(counts)) == 1 else None
        return cls(mask_NHW, image_M, row_M, column_M, offsets, counts, equal_count, positions)

    @property
    def num_images(self) -> int:
        """Number of images N."""
        return self.mask_NHW.shape[0]

    @property
    def num_visible(self) -> int:
        """Number of visible cells M of the whole batch."""
        return self.image_M.numel()

    def grid(self, side: int) -> tuple[int, int, int]:
        """Shape ``(N, H, W)`` of the dense feature map whose cells hold side x side positions."""
        batch, height, width = self.mask_NHW.shape
        return batch, height * side, width * side

    def check_fits(self, x_NCHW: Tensor) -> None:
        """Check that the mask belongs to these images.

        Raises:
            ValueError: the image sides are not multiples of the cell size, or the mask's shape is
                not theirs.
        """
        batch, _, height, width = x_NCHW.shape
        if height % CELL_SIZE or width % CELL_SIZE:
            raise ValueError(
                f"a masked call needs image sides that are multiples of {CELL_SIZE}, "
                f"got {height}x{width} (H x W)"
            )
        expected = (batch, height // CELL_SIZE, width // CELL_SIZE)
        if tuple(self.mask_NHW.shape) != expected:
            raise ValueError(
                f"the mask of images {tuple(x_NCHW.shape)} must have the shape {expected}, "
                f"got {tuple(self.mask_NHW.shape)}"
            )
        if self.mask_NHW.device != x_NCHW.device:
            raise ValueError(
                f"mask and images must be on one device, got {self.mask_NHW.device} "
                f"and {x_NCHW.device}"
            )


def _positions(
    mask_shape: torch.Size, image_M: Tensor, row_M: Tensor, column_M: Tensor, side: int
) -> Tensor:
    _, height, width = mask_shape
    steps = torch.arange(side, device=image_M.device)
    rows = (image_M * height + row_M)[:, None] * side + steps
    columns = column_M[:, None] * side + steps
    return (rows[:, :, None] * (width * side) + columns[:, None, :]).flatten()
