"""Layouts: where the visible cells live in memory, and what differs for it."""

from mmconvnextv2.nn.layouts.base import Layout
from mmconvnextv2.nn.layouts.dense import DenseLayout
from mmconvnextv2.nn.layouts.masked import MaskedLayout
from mmconvnextv2.nn.layouts.minkowski import MinkowskiLayout
from mmconvnextv2.nn.layouts.packed import PackedLayout
from mmconvnextv2.nn.layouts.triton import TritonLayout

MASK_LAYOUTS: dict[str, type[MaskedLayout] | type[PackedLayout]] = {
    "packed": PackedLayout,
    "masked": MaskedLayout,
    "minkowski": MinkowskiLayout,
    "triton": TritonLayout,
}
"""The layouts that a masked call can use, by the name that `ConvNeXtV2.mask_layout` takes."""


def check_mask_layout(name: str) -> None:
    """Check that a masked call can use a layout here.

    Raises:
        ValueError: no layout of `MASK_LAYOUTS` has this name.
        ImportError: the layout needs a library that cannot be imported.
    """
    if not isinstance(name, str) or name not in MASK_LAYOUTS:
        raise ValueError(f"mask_layout must be one of {sorted(MASK_LAYOUTS)}, got {name!r}")
    MASK_LAYOUTS[name].check_available()


__all__ = [
    "MASK_LAYOUTS",
    "DenseLayout",
    "Layout",
    "MaskedLayout",
    "MinkowskiLayout",
    "PackedLayout",
    "TritonLayout",
    "check_mask_layout",
]
