"""Reading checkpoints safely and loading them strictly; imports torch alone."""

from .loading import StateDictMismatch, backbone_state_dict, load_strictly, read_checkpoint

__all__ = ["StateDictMismatch", "backbone_state_dict", "load_strictly", "read_checkpoint"]
