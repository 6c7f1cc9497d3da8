"""Hooks of the Runner, in mmengine's root registry."""

from mmconvnextv2.engine.hooks.annotation_check import AnnotationCheckHook
from mmconvnextv2.engine.hooks.compile_blocks import CompileBlocksHook
from mmconvnextv2.engine.hooks.decoder_warmup import DecoderWarmupHook
from mmconvnextv2.engine.hooks.learning_rate_terms import LearningRateTermsHook
from mmconvnextv2.engine.hooks.plan_hook import PlanHook
from mmconvnextv2.engine.hooks.portable_checkpoint import PortableCheckpointHook
from mmconvnextv2.engine.hooks.progress import ProgressHook
from mmconvnextv2.engine.hooks.reconstruction import ReconstructionHook
from mmconvnextv2.engine.hooks.stateless_seed import StatelessSeedHook
from mmconvnextv2.engine.hooks.strict_loading import StrictLoadingHook
from mmconvnextv2.engine.hooks.training_signal import TrainingSignalHook

__all__ = [
    "AnnotationCheckHook",
    "CompileBlocksHook",
    "DecoderWarmupHook",
    "LearningRateTermsHook",
    "PlanHook",
    "PortableCheckpointHook",
    "ProgressHook",
    "ReconstructionHook",
    "StatelessSeedHook",
    "StrictLoadingHook",
    "TrainingSignalHook",
]
