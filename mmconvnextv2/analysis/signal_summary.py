"""Judges the record of a run on held-out images, in plain words: falling, collapsed, worth more?

A record is one validation: a dictionary with ``step`` (iterations done), ``held_out_loss``,
``feature_diversity_stage1`` to ``4``, ``effective_rank`` and, where there are, ``train_loss``,
``epoch`` and ``knn_top1``. All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Record = dict[str, float]

STAGES = (1, 2, 3, 4)
NOTEWORTHY = 0.01
"""A loss has changed if it has by at least this share of itself."""
LEAST_DIVERSITY = 0.15
"""Mean cosine distance below which the channels of a stage are nearly one and the same.

The paper's figure 4 has 0.41 to 0.49 for a healthy encoder, and goes down to 0.18 for one that
collapses.
"""
LEAST_RANK = 1.05
"""Effective rank below which all images have nearly the same features."""
KEPT_SHARE = 0.5
"""Diversity and rank have collapsed if they fall below this share of their first value."""


@dataclass(frozen=True)
class SignalSummary:
    """What a record says.

    Attributes:
        trend: of the held-out loss at the end: "falling", "flat", "rising" or "unknown".
        best_step: step of the lowest held-out loss.
        collapse: one sentence for every sign of collapsed features; empty where there is none.
        lines: all of it in plain words.
    """

    trend: str
    best_step: int
    collapse: tuple[str, ...]
    lines: tuple[str, ...]


def lowest_loss(records: Sequence[Record]) -> Record:
    """The record of the lowest held-out loss; one that is not finite ranks last."""

    def loss_or_infinity(record: Record) -> float:
        loss = record["held_out_loss"]
        return loss if math.isfinite(loss) else math.inf

    return min(records, key=loss_or_infinity)


def find_collapse(records: Sequence[Record]) -> tuple[str, ...]:
    """Look for signs that the features have collapsed in the newest record.

    Two kinds: the channels of a stage become copies of each other or die (paper, section 3), and
    the features of all images become the same or lie on a few directions. Judged in absolute terms,
    and against the first record.

    Args:
        records: at least one, in rising order of steps.

    Returns:
        One sentence for each sign.
    """
    first, last = records[0], records[-1]
    if not math.isfinite(last["effective_rank"]):
        return ("the features are not finite: training has diverged",)
    signs = []
    for stage in STAGES:
        key = f"feature_diversity_stage{stage}"
        limit = max(LEAST_DIVERSITY, KEPT_SHARE * first[key])
        if last[key] < limit:
            signs.append(
                f"the channels of stage {stage} are nearly copies of each other or dead: mean "
                f"cosine distance {last[key]:.3f}, {first[key]:.3f} at the start, and below "
                f"{limit:.3f} is too low"
            )
    # The rank of identical features is 1, so what counts is what exceeds it.
    limit = max(LEAST_RANK, 1 + KEPT_SHARE * (first["effective_rank"] - 1))
    if last["effective_rank"] < limit:
        signs.append(
            f"the images' features use too few directions: effective rank "
            f"{last['effective_rank']:.2f}, {first['effective_rank']:.2f} at the start, and below "
            f"{limit:.2f} is too low"
        )
    return tuple(signs)


def held_out_trend(records: Sequence[Record]) -> tuple[str, float]:
    """Say where the held-out loss was going in the last third of the record.

    A straight line is fitted to the last third of the validations, three at least, not counting
    the one before training.

    Args:
        records: in rising order of steps.

    Returns:
        "falling", "rising" or "flat", and the change over these validations as a share of the loss;
        "unknown" and nan where there are fewer than three, or a loss is not finite.
    """
    trained = [record for record in records if record["step"] > 0]
    window = trained[-max(3, math.ceil(len(trained) / 3)) :]
    steps = np.array([record["step"] for record in window], dtype=np.float64)
    losses = np.array([record["held_out_loss"] for record in window], dtype=np.float64)
    if len(window) < 3 or not np.isfinite(losses).all():
        return "unknown", math.nan
    centred = steps - steps.mean()
    slope = (centred * losses).sum() / (centred**2).sum()
    change = float(slope * (steps[-1] - steps[0]) / losses.mean())
    if abs(change) < NOTEWORTHY:
        return "flat", change
    return ("falling" if change < 0 else "rising"), change


def summarize_signal(records: Sequence[Record], num_images: int) -> SignalSummary:
    """Sum up a run: did the held-out loss still fall, did features collapse, is longer worth it.

    Args:
        records: one for each validation, in rising order of steps.
        num_images: number of held-out images.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError("there is no record of a validation to sum up")
    best = lowest_loss(records)
    trend, change = held_out_trend(records)
    collapse = find_collapse(records)
    lines = [
        f"What {num_images:,} held-out images say, with fixed crops and masks:",
        f"- {_loss_text(records, best)}",
        f"- {_trend_text(trend, change, best)}",
        *_collapse_lines(records, collapse, num_images),
    ]
    if "knn_top1" in records[-1]:
        lines.append(f"- k-NN accuracy: {_from_to(records, 'knn_top1', '.1f')} %.")
    lines.append(
        "- Whether these weights serve your task better than those you started from, only labels "
        "can tell: tools/compare_initializations.py."
    )
    return SignalSummary(trend, int(best["step"]), collapse, tuple(lines))


def _loss_text(records: Sequence[Record], best: Record) -> str:
    first, last = records[0], records[-1]
    text = f"Loss: {_from_to(records, 'held_out_loss', '.4f')}"
    text += f" (iterations {first['step']:,.0f} to {last['step']:,.0f})"
    if best is last:
        return f"{text}, the lowest of the run."
    return f"{text}; the lowest was {best['held_out_loss']:.4f} at iteration {best['step']:,.0f}."


def _trend_text(trend: str, change: float, best: Record) -> str:
    if trend == "falling":
        return (
            f"It was still falling, by {-change:.1%} over the last third of the validations: "
            "training longer is likely to lower it further."
        )
    if trend == "rising":
        return (
            f"It was rising, by {change:.1%} over the last third of the validations: longer is not "
            f"worth it on these images. Take the weights of iteration {best['step']:,.0f}, or more "
            "images, or a lower rate."
        )
    if trend == "flat":
        return (
            f"It was flat ({change:+.1%} over the last third of the validations): going on like "
            "this is not worth it. A rate that ends near 0 flattens every curve, so a longer "
            "schedule from the start may still help."
        )
    return "Too few validations with a finite loss to say whether it was still falling: use three."


def _collapse_lines(
    records: Sequence[Record], collapse: Sequence[str], num_images: int
) -> list[str]:
    if collapse:
        return [f"- COLLAPSED FEATURES: {sign}." for sign in collapse]
    last = records[-1]
    diversity = " ".join(f"{last[f'feature_diversity_stage{stage}']:.2f}" for stage in STAGES)
    return [
        f"- No sign of collapsed features: mean cosine distance of the channels {diversity} "
        f"(stages 1 to 4), effective rank {_from_to(records, 'effective_rank', '.1f')}, of at most "
        f"{num_images:,}."
    ]


def _from_to(records: Sequence[Record], key: str, spec: str) -> str:
    first, last = records[0].get(key), records[-1][key]
    if first is None or len(records) == 1:
        return f"{last:{spec}}"
    return f"{first:{spec}} to {last:{spec}}"
