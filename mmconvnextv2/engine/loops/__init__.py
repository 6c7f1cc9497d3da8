"""Loops of the Runner, in mmengine's root registry."""

from mmconvnextv2.engine.loops.held_out import HeldOutLoop

__all__ = ["HeldOutLoop"]
