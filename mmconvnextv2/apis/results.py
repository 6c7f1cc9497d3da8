"""What the calls on a folder return: where things are, and the figures people ask for first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunResult:
    """A finished run of `pretrain` or `finetune`.

    Attributes:
        task: "pretraining", "classification", "detection" or "segmentation".
        out: folder of the run.
        config: ``out/config.py``, complete. Edited or not, ``python tools/train.py out/config.py
            --work-dir NEW`` trains it again.
        checkpoint: the last valid one.
        metrics: "first_loss", of the first step; "last_loss", the mean of the last ten; and what
            the last validation measured, as "accuracy/top1" (percent), "coco/segm_mAP" (0 to 1) or
            "mIoU" (percent); metrics of objects of a size that there are none of are left out.
        seconds: wall-clock time of this call's training, validations included.
        images_per_second: speed of a training step, the median over all steps.
    """

    task: str
    out: Path
    config: Path
    checkpoint: Path
    metrics: dict[str, float]
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Predictions:
    """What `predict` has written.

    Attributes:
        task: "classification", "detection" or "segmentation".
        pictures: ``out/<name>.png``, one an image: with the class, or boxes and masks, or a tint.
        predictions: ``out/predictions.json``: the same as figures.
    """

    task: str
    pictures: tuple[Path, ...]
    predictions: Path
