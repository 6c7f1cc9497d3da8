"""The plain words at the end of a run, from records whose story is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmconvnextv2.analysis.signal_summary import (
    Record,
    find_collapse,
    held_out_trend,
    summarize_signal,
)

pytestmark = pytest.mark.unit


def make_records(losses: list[float], **figures: list[float]) -> list[Record]:
    """One record for each loss, ten iterations apart, with healthy features unless said so."""
    records = []
    for i, loss in enumerate(losses):
        record = dict(step=10 * i, epoch=i, held_out_loss=loss, effective_rank=12.0)
        record.update({f"feature_diversity_stage{stage}": 0.45 for stage in (1, 2, 3, 4)})
        record.update({name: values[i] for name, values in figures.items()})
        records.append(record)
    return records


FALLING = [1.1, 0.9, 0.8, 0.75, 0.72, 0.70, 0.68]
FLAT = [1.1, 0.9, 0.7, 0.7, 0.701, 0.7, 0.7]
RISING = [1.1, 0.9, 0.7, 0.68, 0.70, 0.72, 0.75]


@pytest.mark.parametrize(
    "losses,trend,words",
    [
        (FALLING, "falling", "training longer is likely to lower it"),
        (FLAT, "flat", "going on like this is not worth it"),
        (RISING, "rising", "longer is not worth it"),
        ([1.0, 0.9, 0.8], "unknown", "Too few validations"),
        ([1.0, 0.9, 0.8, math.nan], "unknown", "Too few validations with a finite loss"),
    ],
)
def test_trend_and_what_to_do(losses: list[float], trend: str, words: str) -> None:
    summary = summarize_signal(make_records(losses), num_images=50)
    assert summary.trend == trend
    assert words in "\n".join(summary.lines)
    assert summary.collapse == ()
    assert "No sign of collapsed features" in "\n".join(summary.lines)


def test_the_change_is_that_of_a_fitted_line() -> None:
    losses = [1.0, *np.random.default_rng(0).uniform(0.5, 0.9, 12)]
    steps = 10.0 * np.arange(9, 13)  # the last 4 of 12 after the start
    slope, _ = np.polyfit(steps, losses[9:], 1)
    expected = slope * 30 / np.mean(losses[9:])
    assert held_out_trend(make_records(losses))[1] == pytest.approx(expected)


def test_the_start_is_not_part_of_the_trend() -> None:
    assert held_out_trend(make_records([1.1, 0.9, 0.9, 0.9]))[0] == "flat"
    assert held_out_trend(make_records([0.5, 0.9, 0.9, 0.9]))[0] == "flat"


def test_the_lowest_loss_is_named_with_its_iteration() -> None:
    summary = summarize_signal(make_records(RISING), num_images=50)
    text = "\n".join(summary.lines)
    assert summary.best_step == 30
    assert "1.1000 to 0.7500 (iterations 0 to 60)" in text
    assert "the lowest was 0.6800 at iteration 30" in text
    assert "Take the weights of iteration 30" in text
    assert "the lowest of the run" in "\n".join(summarize_signal(make_records(FALLING), 50).lines)


@pytest.mark.parametrize(
    "figures,sign",
    [
        (dict(feature_diversity_stage3=[0.45, 0.45, 0.2]), "stage 3"),
        (dict(feature_diversity_stage1=[0.08, 0.08, 0.03]), "stage 1"),
        (dict(effective_rank=[12.0, 12.0, 4.0]), "too few directions"),
        (dict(effective_rank=[1.3, 1.3, 1.1]), "too few directions"),
        (dict(effective_rank=[1.01, 1.01, 1.01]), "too few directions"),
        (dict(effective_rank=[12.0, 12.0, math.nan]), "diverged"),
    ],
)
def test_signs_of_collapse(figures: dict[str, list[float]], sign: str) -> None:
    records = make_records([1.0, 0.9, 0.8], **figures)
    (found,) = find_collapse(records)
    assert sign in found
    assert "COLLAPSED FEATURES" in "\n".join(summarize_signal(records, 50).lines)


@pytest.mark.parametrize(
    "figures",
    [
        dict(effective_rank=[12.0, 12.0, 7.0]),
        dict(effective_rank=[1.3, 1.3, 1.2]),
        dict(feature_diversity_stage3=[0.45, 0.45, 0.25]),
        dict(feature_diversity_stage3=[0.10, 0.10, 0.45]),
    ],
)
def test_healthy_changes_are_no_collapse(figures: dict[str, list[float]]) -> None:
    assert find_collapse(make_records([1.0, 0.9, 0.8], **figures)) == ()


def test_the_accuracy_is_told_where_there_is_one() -> None:
    records = make_records(FLAT, knn_top1=[60.0, 61.0, 62.0, 63.0, 64.0, 65.0, 66.5])
    assert "- k-NN accuracy: 60.0 to 66.5 %." in summarize_signal(records, 50).lines
    assert "k-NN" not in "\n".join(summarize_signal(make_records(FLAT), 50).lines)


def test_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match="no record"):
        summarize_signal([], 5)
