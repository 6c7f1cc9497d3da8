"""Loops of the Runner, in mmengine's root registry."""

from mmconvnextv2.engine.loops.held_out import HeldOutLoop
from mmconvnextv2.engine.loops.resumable import ResumableEpochLoop, ResumableIterLoop

__all__ = ["HeldOutLoop", "ResumableEpochLoop", "ResumableIterLoop"]
