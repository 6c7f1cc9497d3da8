"""ConvNeXt V2 and FCMAE as plain torch modules; this package imports torch alone."""

from mmconvnextv2.nn.block import Block
from mmconvnextv2.nn.cells import CELL_SIZE, VisibleCells
from mmconvnextv2.nn.convnextv2 import ARCHITECTURES, ConvNeXtV2
from mmconvnextv2.nn.decoder import FCMAEDecoder
from mmconvnextv2.nn.decoder_transformer import FCMAETransformerDecoder
from mmconvnextv2.nn.decoder_unet import FCMAEUNetDecoder
from mmconvnextv2.nn.fcmae import FCMAE
from mmconvnextv2.nn.grn import GRN
from mmconvnextv2.nn.head import FCMAEHead
from mmconvnextv2.nn.layouts import MASK_LAYOUTS
from mmconvnextv2.nn.masking import random_masking
from mmconvnextv2.nn.patchify import patchify, unpatchify

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
    "FCMAETransformerDecoder",
    "FCMAEUNetDecoder",
    "VisibleCells",
    "patchify",
    "random_masking",
    "unpatchify",
]
