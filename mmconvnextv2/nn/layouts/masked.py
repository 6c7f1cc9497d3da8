"""The masked layout: whole feature maps with zeros in removed cells.

This is the reference that every other masked layout is tested against, and what the paper's own
runs did (appendix A.2): compute whole maps, and zero what is removed before anything looks across
cells or over an image. It is written to be read as much as run.

Shape suffixes: N batch, H and W positions, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmconvnextv2.nn.cells import CELL_SIZE, STAGE_SIDES, VisibleCells, enlarge_mask
from mmconvnextv2.nn.layouts.dense import DenseLayout


class MaskedLayout(DenseLayout):
    """Dense features ``(N, H, W, C)`` that hold zeros wherever a cell is removed.

    Args:
        cells: plan of the batch.
    """

    def __init__(self, cells: VisibleCells) -> None:
        self.cells = cells
        self.removed = {side: enlarge_mask(cells.mask_NHW, side) for side in STAGE_SIDES}

    def patch_embed(self, x_NCHW: Tensor, conv: nn.Conv2d) -> Tensor:
        """See `Layout.patch_embed`; pixels of removed cells are never used."""
        removed_NHW = enlarge_mask(self.cells.mask_NHW, CELL_SIZE)
        return super().patch_embed(x_NCHW.masked_fill(removed_NHW[:, None], 0), conv)

    def depthwise(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """See `Layout.depthwise`; the plain convolution, as this is the reference."""
        return conv(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def zero_removed(self, features: Tensor) -> Tensor:
        """See `Layout.zero_removed`."""
        side = features.shape[1] // self.cells.mask_NHW.shape[1]
        return features.masked_fill(self.removed[side][..., None], 0)

    def group_images(self, features: Tensor) -> Tensor | None:
        """See `Layout.group_images`; removed positions lie between visible ones."""
        return None

    def mean_per_image(self, features: Tensor) -> Tensor:
        """See `Layout.mean_per_image`."""
        side = features.shape[1] // self.cells.mask_NHW.shape[1]
        num_positions = self.cells.offsets.diff() * side**2
        return features.sum(dim=(1, 2)) / num_positions[:, None].to(features.dtype)
