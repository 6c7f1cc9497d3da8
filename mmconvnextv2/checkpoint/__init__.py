"""Reading checkpoints safely and loading them strictly; imports torch alone."""

from mmconvnextv2.checkpoint.loading import (
    StateDictMismatch,
    backbone_state_dict,
    load_strictly,
    read_checkpoint,
)

__all__ = ["StateDictMismatch", "backbone_state_dict", "load_strictly", "read_checkpoint"]
