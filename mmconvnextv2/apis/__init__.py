"""The whole job in one call."""

from .pretrain import pretrain
from .reconstruct import reconstruct

__all__ = ["pretrain", "reconstruct"]
