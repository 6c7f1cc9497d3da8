"""Hooks of the Runner, in mmengine's root registry."""

from mmconvnextv2.engine.hooks.accumulated_gradients import AccumulatedGradientsHook
from mmconvnextv2.engine.hooks.annotation_check import AnnotationCheckHook
from mmconvnextv2.engine.hooks.compile_blocks import CompileBlocksHook
from mmconvnextv2.engine.hooks.computing_time import ComputingTimeHook
from mmconvnextv2.engine.hooks.consolidate_optimizer import ConsolidateOptimizerHook
from mmconvnextv2.engine.hooks.decoder_warmup import DecoderWarmupHook
from mmconvnextv2.engine.hooks.durable_checkpoint import DurableCheckpointHook
from mmconvnextv2.engine.hooks.early_stopping import ResumableEarlyStoppingHook
from mmconvnextv2.engine.hooks.feature_collapse import FeatureCollapseHook
from mmconvnextv2.engine.hooks.finite import FiniteHook, NonFiniteError
from mmconvnextv2.engine.hooks.learning_rate_terms import LearningRateTermsHook
from mmconvnextv2.engine.hooks.plan_hook import PlanHook
from mmconvnextv2.engine.hooks.portable_checkpoint import PortableCheckpointHook
from mmconvnextv2.engine.hooks.progress import ProgressHook
from mmconvnextv2.engine.hooks.reconstruction import ReconstructionHook
from mmconvnextv2.engine.hooks.stateless_seed import StatelessSeedHook
from mmconvnextv2.engine.hooks.stop_on_signal import StopOnSignalHook
from mmconvnextv2.engine.hooks.strict_loading import StrictLoadingHook
from mmconvnextv2.engine.hooks.training_signal import TrainingSignalHook

__all__ = [
    "AccumulatedGradientsHook",
    "AnnotationCheckHook",
    "CompileBlocksHook",
    "ComputingTimeHook",
    "ConsolidateOptimizerHook",
    "DecoderWarmupHook",
    "DurableCheckpointHook",
    "FeatureCollapseHook",
    "FiniteHook",
    "LearningRateTermsHook",
    "NonFiniteError",
    "PlanHook",
    "PortableCheckpointHook",
    "ProgressHook",
    "ReconstructionHook",
    "ResumableEarlyStoppingHook",
    "StatelessSeedHook",
    "StopOnSignalHook",
    "StrictLoadingHook",
    "TrainingSignalHook",
]
