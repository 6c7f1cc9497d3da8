"""The built-in sample data set: real images with exact labels, made offline."""

from mmconvnextv2.datasets.sample_set.builder import TASKS, build_sample_set
from mmconvnextv2.datasets.sample_set.specs import (
    CLASSES,
    ClassificationSpec,
    DetectionSpec,
    PretrainSpec,
    SegmentationSpec,
)

__all__ = [
    "CLASSES",
    "TASKS",
    "ClassificationSpec",
    "DetectionSpec",
    "PretrainSpec",
    "SegmentationSpec",
    "build_sample_set",
]
