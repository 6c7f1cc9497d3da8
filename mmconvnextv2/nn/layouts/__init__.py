"""Layouts: where the visible cells live in memory, and what differs for it."""

from .base import Layout
from .dense import DenseLayout
from .masked import MaskedLayout
from .packed import PackedLayout

MASK_LAYOUTS: dict[str, type[MaskedLayout] | type[PackedLayout]] = {
    "packed": PackedLayout,
    "masked": MaskedLayout,
}
"""The layouts that a masked call can use, by the name that `ConvNeXtV2.mask_layout` takes."""

__all__ = ["MASK_LAYOUTS", "DenseLayout", "Layout", "MaskedLayout", "PackedLayout"]
