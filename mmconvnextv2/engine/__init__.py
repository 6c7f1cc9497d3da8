"""What the Runner needs around a model; importing this package registers it."""

from mmconvnextv2.engine.cpu_runner import CpuRunner
from mmconvnextv2.engine.hooks import (
    AccumulatedGradientsHook,
    AnnotationCheckHook,
    CompileBlocksHook,
    ConsolidateOptimizerHook,
    DecoderWarmupHook,
    DurableCheckpointHook,
    FeatureCollapseHook,
    FiniteHook,
    LearningRateTermsHook,
    NonFiniteError,
    PlanHook,
    PortableCheckpointHook,
    ProgressHook,
    ReconstructionHook,
    ResumableEarlyStoppingHook,
    StatelessSeedHook,
    StopOnSignalHook,
    StrictLoadingHook,
    TrainingSignalHook,
)
from mmconvnextv2.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mmconvnextv2.engine.learning_rate import scale_learning_rate
from mmconvnextv2.engine.loops import HeldOutLoop, ResumableEpochLoop, ResumableIterLoop
from mmconvnextv2.engine.mlflow_backend import MLflowBackend
from mmconvnextv2.engine.optim_constructors import WeightDecayOptimWrapperConstructor
from mmconvnextv2.engine.optim_wrappers import AutocastOptimWrapper
from mmconvnextv2.engine.sharded_optimizer import ShardedOptimizer

__all__ = [
    "AccumulatedGradientsHook",
    "AnnotationCheckHook",
    "AutocastOptimWrapper",
    "CompileBlocksHook",
    "ConsolidateOptimizerHook",
    "CpuRunner",
    "DecoderWarmupHook",
    "DurableCheckpointHook",
    "FeatureCollapseHook",
    "FiniteHook",
    "HeldOutLoop",
    "LayerDecayOptimWrapperConstructor",
    "LearningRateTermsHook",
    "MLflowBackend",
    "NonFiniteError",
    "PlanHook",
    "PortableCheckpointHook",
    "ProgressHook",
    "ReconstructionHook",
    "ResumableEarlyStoppingHook",
    "ResumableEpochLoop",
    "ResumableIterLoop",
    "ShardedOptimizer",
    "StatelessSeedHook",
    "StopOnSignalHook",
    "StrictLoadingHook",
    "TrainingSignalHook",
    "WeightDecayOptimWrapperConstructor",
    "scale_learning_rate",
]
