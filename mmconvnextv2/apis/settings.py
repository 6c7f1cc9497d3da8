"""How long and how fast to train, by the number of images: one table a kind of run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmconvnextv2.analysis.plan import format_seconds

PAPER_BASE_LR, PAPER_BATCH = 1.5e-4, 4096
"""Pre-training in the paper: learning rate for 256 images a step, and images a step."""

WARMUP_STEPS = 500
"""Optimizer steps of each warm-up, of the decoder alone and of both parts, in a long run."""

WARMUP_SHARE = 0.125
"""Share of all steps that each warm-up takes at most."""

VALIDATIONS = 20
"""How often a run measures the held-out images."""


@dataclass(frozen=True)
class ContinueSettings:
    """One row of `SETTINGS`: what suits so many images.

    The paper tells nothing of short schedules and small batches; the values are this project's
    starting points. About 3,000 to 8,000 steps move an encoder to images of another kind without
    training the few images by heart; the rate grows with the square root of the batch, as Adam's
    does; the mask ratio is the paper's.

    Attributes:
        max_images: the row is for up to so many images; None for any more.
        epochs: passes over the images.
        batch_size: images of one forward pass.
        accumulate: forward passes of one optimizer step.
        base_lr: learning rate of the decoder for 256 images a step.
        encoder_rate: factor of it for the encoder, before the decay from layer to layer.
        mask_ratio: share of cells that is removed.
        held_out_share: share of images that is kept for the held-out loss.
    """

    max_images: int | None
    epochs: int
    batch_size: int
    accumulate: int
    base_lr: float
    encoder_rate: float = 0.25
    mask_ratio: float = 0.6
    held_out_share: float = 0.1

    @property
    def images_a_step(self) -> int:
        """Images behind one step of the optimizer."""
        return self.batch_size * self.accumulate

    @property
    def lr(self) -> float:
        """Absolute learning rate of the decoder."""
        return self.base_lr * self.images_a_step / 256


SETTINGS = (
    ContinueSettings(300, 400, 32, 1, 2.4e-3, held_out_share=0.2),
    ContinueSettings(1_000, 300, 64, 1, 1.6e-3),
    ContinueSettings(3_000, 200, 64, 1, 1.6e-3),
    ContinueSettings(10_000, 100, 64, 2, 1.2e-3, held_out_share=0.05),
    ContinueSettings(30_000, 60, 64, 4, 8e-4, held_out_share=0.05),
    ContinueSettings(100_000, 40, 64, 8, 6e-4, held_out_share=0.02),
    ContinueSettings(None, 30, 64, 16, 4e-4, held_out_share=0.01),
)
"""Rows by growing number of images."""


def settings_for(num_images: int) -> ContinueSettings:
    """Look up the row for a number of images.

    Raises:
        ValueError: there is no image.
    """
    if num_images < 1:
        raise ValueError(f"there must be at least one image, got {num_images}")
    return next(row for row in SETTINGS if row.max_images is None or num_images <= row.max_images)


Epochs = tuple[tuple[int | None, int], ...]
"""Rows of a table of epochs: for up to so many images, None for any more, and the epochs."""

PRETRAINING_EPOCHS: Epochs = ((1_000, 800), (10_000, 400), (100_000, 200), (None, 100))
"""Epochs of pre-training from random weights. The paper has 800 to 1600 for 1.28 million images;
these are starting points of ours for one GPU: what is learned still grows behind them."""

FINE_TUNING_EPOCHS: Epochs = ((200, 100), (1_000, 50), (5_000, 30), (20_000, 20), (None, 12))
"""Epochs of fine-tuning of any task; starting points of ours, between 1,000 and 5,000 steps of
four images where there are few of them. Mask R-CNN's usual schedule on COCO has 12."""


def epochs_for(table: Epochs, num_images: int) -> int:
    """Look up the epochs for a number of images.

    Raises:
        ValueError: there is no image.
    """
    if num_images < 1:
        raise ValueError(f"there must be at least one image, got {num_images}")
    return next(epochs for most, epochs in table if most is None or num_images <= most)


def base_lr_for(images_a_step: int) -> float:
    """Learning rate for 256 images a step, of pre-training from random weights.

    The paper's 1.5e-4 goes with 4,096 images a step (appendix A.2, table 8). With fewer, the rate
    of a step falls with the square root of their number, as Adam's does; so this one rises. Falling
    linearly, it would hardly move a network in a run of a few thousand small steps.

    Args:
        images_a_step: images behind one step of the optimizer.
    """
    return PAPER_BASE_LR * math.sqrt(PAPER_BATCH / min(images_a_step, PAPER_BATCH))


def warmup_iterations(epochs: int, iterations_an_epoch: int, accumulate: int) -> int:
    """Length of each warm-up in iterations, whole steps of the optimizer; 0 in the shortest runs.

    Args:
        epochs: epochs of the run.
        iterations_an_epoch: forward passes of an epoch.
        accumulate: forward passes of one optimizer step.
    """
    steps = epochs * iterations_an_epoch // accumulate
    return accumulate * min(WARMUP_STEPS, math.floor(WARMUP_SHARE * steps))


def settings_table(images_per_second: tuple[float, ...] = (10.0, 500.0)) -> str:
    """Write `SETTINGS` as a Markdown table, with steps and time for the most images of each row.

    Args:
        images_per_second: speeds to state the expected time for. A run logs its own.
    """
    speeds = [f"time at {speed:g} images a second" for speed in images_per_second]
    titles = [
        *("images up to", "epochs", "batch x accumulated", "learning rate", "encoder", "mask"),
        *("held out", "optimizer steps", *speeds),
    ]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in SETTINGS:
        cells = [
            "more" if row.max_images is None else f"{row.max_images:,}",
            f"{row.epochs}",
            f"{row.batch_size} x {row.accumulate}",
            f"{row.lr:.2g}",
            f"x {row.encoder_rate:g}",
            f"{row.mask_ratio:g}",
            f"{row.held_out_share:.0%}",
            *_length(row, images_per_second),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _length(row: ContinueSettings, images_per_second: tuple[float, ...]) -> list[str]:
    if row.max_images is None:
        return ["", *("" for _ in images_per_second)]
    num_images = round(row.max_images * (1 - row.held_out_share))
    iterations = row.epochs * (num_images // row.batch_size)
    times = (format_seconds(iterations * row.batch_size / speed) for speed in images_per_second)
    return [f"{iterations // row.accumulate:,}", *times]
