"""The registered models: the plain modules plus what OpenMMLab adds."""

from .convnextv2 import ConvNeXtV2
from .data_preprocessor import FCMAEDataPreprocessor
from .fcmae import FCMAE, FCMAEDecoder, FCMAEHead

__all__ = ["FCMAE", "ConvNeXtV2", "FCMAEDataPreprocessor", "FCMAEDecoder", "FCMAEHead"]
