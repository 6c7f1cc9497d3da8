"""Settings that a config of any task states in several places, filled in together."""

from __future__ import annotations

import math
from typing import Any

from mmengine.config import Config

from mmconvnextv2.datasets.normalization import Normalization
from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.nn.missing import Missing

POINTS_OF_A_CURVE = 50
"""How many losses the log of a short run has."""


def check_crop_size(image_size: int) -> None:
    """Check the side of the crops of pre-training, in pixels.

    Raises:
        ValueError: it is not a multiple of 32 from 64 on.
    """
    if not isinstance(image_size, int) or image_size < 64 or image_size % 32:
        raise ValueError(f"image_size must be a multiple of 32 from 64 on, got {image_size!r}")


def fill_loader(loader: dict[str, Any], batch_size: int, num_workers: int) -> None:
    """Set batch and processes of a loader, in place.

    Raises:
        ValueError: there is no image in a batch, or a negative number of processes.
    """
    check_count("batch_size", batch_size)
    check_count("num_workers", num_workers, least=0)
    loader.update(
        batch_size=batch_size, num_workers=num_workers, persistent_workers=num_workers > 0
    )


def fill_optimization(
    cfg: Config, *, lr: float, batch_size: int, accumulate: int, amp: bool
) -> None:
    """Set rate, accumulation and precision of a pre-training config, in place.

    Args:
        cfg: the config.
        lr: absolute learning rate, for ``batch_size * accumulate`` images a step.
        batch_size: images of one forward pass.
        accumulate: forward passes of one optimizer step.
        amp: compute in bfloat16.

    Raises:
        ValueError: the rate is no positive number, or nothing is accumulated.
    """
    if not (isinstance(lr, int | float) and 0 < lr < math.inf):
        raise ValueError(f"the learning rate (base_lr) must be positive and finite, got {lr!r}")
    check_count("accumulate", accumulate)
    cfg.optim_wrapper.type = "AutocastOptimWrapper" if amp else "OptimWrapper"
    cfg.optim_wrapper.accumulative_counts = accumulate
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.auto_scale_lr.base_batch_size = batch_size * accumulate


def log_often_enough(cfg: Config, iterations: int) -> None:
    """Let a short run log enough points for a curve, in place; a long one stays as it is.

    Args:
        cfg: the config.
        iterations: forward passes of the whole run.
    """
    logger = cfg.default_hooks.logger
    logger.interval = max(1, min(logger.interval, iterations // POINTS_OF_A_CURVE))


def load_raster(
    normalization: Normalization, missing: Missing, no_data: float | None
) -> dict[str, Any]:
    """Config of `LoadRaster` for images of the kind that was measured."""
    return dict(
        type="LoadRaster",
        channels=len(normalization.mean),
        missing=missing,
        no_data=no_data,
        dtype=normalization.dtype,
    )
