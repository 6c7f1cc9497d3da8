"""What the Runner needs around a model; importing this package registers it."""

from .hooks import (
    CompileBlocksHook,
    PortableCheckpointHook,
    ProgressHook,
    ReconstructionHook,
    StatelessSeedHook,
)
from .learning_rate import LearningRateTermsHook, scale_learning_rate
from .optim_constructors import WeightDecayOptimWrapperConstructor
from .optim_wrappers import AutocastOptimWrapper

__all__ = [
    "AutocastOptimWrapper",
    "CompileBlocksHook",
    "LearningRateTermsHook",
    "PortableCheckpointHook",
    "ProgressHook",
    "ReconstructionHook",
    "StatelessSeedHook",
    "WeightDecayOptimWrapperConstructor",
    "scale_learning_rate",
]
