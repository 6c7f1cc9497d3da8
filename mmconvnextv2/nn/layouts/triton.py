"""The triton layout: packed cells, and a depthwise convolution that computes nothing else.

Packed on a GPU scatters cells into the dense map for the depthwise convolution and gathers them
again. Here Triton kernels read the neighbours where they are stored. They have been tested in
Triton's interpreter and compiled for GPUs, but not yet run on one: until then this is a layout to
ask for, and packed stays the default.
"""

from __future__ import annotations

import importlib.util
import os

from torch import Tensor, nn

from mmconvnextv2.nn.cells import STAGE_SIDES, VisibleCells
from mmconvnextv2.nn.depthwise import cast_for_autocast
from mmconvnextv2.nn.layouts.packed import PackedLayout


class TritonLayout(PackedLayout):
    """Features ``(M, s, s, C)`` of the visible cells; Triton looks across positions.

    Args:
        cells: plan of the batch.

    Raises:
        RuntimeError: the mask is on a CPU, and Triton's interpreter is not switched on.
    """

    def __init__(self, cells: VisibleCells) -> None:
        from mmconvnextv2.nn.depthwise_triton import neighbour_rows

        super().__init__(cells)
        if cells.mask_NHW.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError(
                "mask_layout='triton' computes on GPUs and is called on the CPU: move model and "
                "images to a GPU, or set mask_layout='packed'"
            )
        self.tables = {side: neighbour_rows(cells, side) for side in STAGE_SIDES}

    @classmethod
    def check_available(cls) -> None:
        """See `Layout.check_available`.

        Raises:
            ImportError: Triton is not installed.
        """
        if importlib.util.find_spec("triton") is None:
            raise ImportError(
                "mask_layout='triton' needs Triton, which comes with torch's builds for Linux and "
                "GPUs: pip install triton, or take mask_layout='packed'"
            )

    def depthwise(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """See `Layout.depthwise`."""
        from mmconvnextv2.nn.depthwise_triton import depthwise_through_table

        table_MBB = self.tables[features.shape[1]]
        return depthwise_through_table(
            *cast_for_autocast(features, conv.weight, conv.bias), table_MBB
        )
