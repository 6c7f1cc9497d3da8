"""The registered models: the plain modules plus what OpenMMLab adds."""

from mmconvnextv2.models.convnextv2 import ConvNeXtV2
from mmconvnextv2.models.data_preprocessor import FCMAEDataPreprocessor
from mmconvnextv2.models.fcmae import (
    FCMAE,
    FCMAEDecoder,
    FCMAEHead,
    FCMAETransformerDecoder,
    FCMAEUNetDecoder,
)
from mmconvnextv2.models.simmim import ConvNetSimMIM

__all__ = [
    "FCMAE",
    "ConvNeXtV2",
    "ConvNetSimMIM",
    "FCMAEDataPreprocessor",
    "FCMAEDecoder",
    "FCMAEHead",
    "FCMAETransformerDecoder",
    "FCMAEUNetDecoder",
]
