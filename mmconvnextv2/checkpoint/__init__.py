"""Checkpoints of all publishers: safe reading, strict loading, conversion; imports torch alone."""

from mmconvnextv2.checkpoint.convert import (
    PUBLISHERS,
    Conversion,
    convert_state_dict,
    recognize_source,
    to_our_names,
)
from mmconvnextv2.checkpoint.download import ChecksumMismatch, fetch_checkpoint, sha256_of
from mmconvnextv2.checkpoint.loading import (
    StateDictMismatch,
    backbone_state_dict,
    load_strictly,
)
from mmconvnextv2.checkpoint.reading import read_checkpoint
from mmconvnextv2.checkpoint.writing import write_checkpoint

__all__ = [
    "PUBLISHERS",
    "ChecksumMismatch",
    "Conversion",
    "StateDictMismatch",
    "backbone_state_dict",
    "convert_state_dict",
    "fetch_checkpoint",
    "load_strictly",
    "read_checkpoint",
    "recognize_source",
    "sha256_of",
    "to_our_names",
    "write_checkpoint",
]
