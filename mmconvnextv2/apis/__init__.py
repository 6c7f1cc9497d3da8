"""The whole job in one call."""

from mmconvnextv2.apis.pretrain import pretrain
from mmconvnextv2.apis.reconstruct import reconstruct

__all__ = ["pretrain", "reconstruct"]
