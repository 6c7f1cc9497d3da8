"""ConvNeXt V2 and FCMAE as plain torch modules; this package imports torch alone."""

from .block import Block
from .cells import CELL_SIZE, VisibleCells
from .convnextv2 import ARCHITECTURES, ConvNeXtV2
from .decoder import FCMAEDecoder
from .fcmae import FCMAE
from .grn import GRN
from .head import FCMAEHead
from .layouts import MASK_LAYOUTS
from .masking import random_masking
from .patchify import patchify, unpatchify

__all__ = [
    "ARCHITECTURES",
    "CELL_SIZE",
    "FCMAE",
    "GRN",
    "MASK_LAYOUTS",
    "Block",
    "ConvNeXtV2",
    "FCMAEDecoder",
    "FCMAEHead",
    "VisibleCells",
    "patchify",
    "random_masking",
    "unpatchify",
]
