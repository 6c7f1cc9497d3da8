"""Hooks of the Runner, in mmengine's root registry."""

from .compile_blocks import CompileBlocksHook
from .portable_checkpoint import PortableCheckpointHook
from .progress import ProgressHook
from .reconstruction import ReconstructionHook
from .stateless_seed import StatelessSeedHook

__all__ = [
    "CompileBlocksHook",
    "PortableCheckpointHook",
    "ProgressHook",
    "ReconstructionHook",
    "StatelessSeedHook",
]
