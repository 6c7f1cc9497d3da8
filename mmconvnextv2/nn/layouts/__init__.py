"""Layouts: where the visible cells live in memory, and what differs for it."""

from mmconvnextv2.nn.layouts.base import Layout
from mmconvnextv2.nn.layouts.dense import DenseLayout
from mmconvnextv2.nn.layouts.masked import MaskedLayout
from mmconvnextv2.nn.layouts.packed import PackedLayout

MASK_LAYOUTS: dict[str, type[MaskedLayout] | type[PackedLayout]] = {
    "packed": PackedLayout,
    "masked": MaskedLayout,
}
"""The layouts that a masked call can use, by the name that `ConvNeXtV2.mask_layout` takes."""

__all__ = ["MASK_LAYOUTS", "DenseLayout", "Layout", "MaskedLayout", "PackedLayout"]
