"""What the Runner needs around a model; importing this package registers it."""

from mmconvnextv2.engine.hooks import (
    AnnotationCheckHook,
    CompileBlocksHook,
    DecoderWarmupHook,
    LearningRateTermsHook,
    PlanHook,
    PortableCheckpointHook,
    ProgressHook,
    ReconstructionHook,
    StatelessSeedHook,
    StrictLoadingHook,
    TrainingSignalHook,
)
from mmconvnextv2.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mmconvnextv2.engine.learning_rate import scale_learning_rate
from mmconvnextv2.engine.loops import HeldOutLoop
from mmconvnextv2.engine.optim_constructors import WeightDecayOptimWrapperConstructor
from mmconvnextv2.engine.optim_wrappers import AutocastOptimWrapper

__all__ = [
    "AnnotationCheckHook",
    "AutocastOptimWrapper",
    "CompileBlocksHook",
    "DecoderWarmupHook",
    "HeldOutLoop",
    "LayerDecayOptimWrapperConstructor",
    "LearningRateTermsHook",
    "PlanHook",
    "PortableCheckpointHook",
    "ProgressHook",
    "ReconstructionHook",
    "StatelessSeedHook",
    "StrictLoadingHook",
    "TrainingSignalHook",
    "WeightDecayOptimWrapperConstructor",
    "scale_learning_rate",
]
