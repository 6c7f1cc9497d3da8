"""The picture of the held-out record: all panels, right lines, odd records."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmconvnextv2.visualization.training_signal import plot_training_signal

pytestmark = pytest.mark.unit


def make_records(count: int, knn: bool = False) -> list[dict[str, float]]:
    records = []
    for i in range(count):
        record = dict(step=10 * i, epoch=i, held_out_loss=0.6 + 0.5 * 0.7**i)
        record.update({f"feature_diversity_stage{s}": 0.3 + 0.03 * s for s in (1, 2, 3, 4)})
        record["effective_rank"] = 8 + i
        if i:
            record["train_loss"] = 0.62 + 0.45 * 0.7**i
        if knn:
            record["knn_top1"] = 50 + i
        records.append(record)
    return records


def lines_of(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def test_panels_hold_the_record(tmp_path: Path, figures: list[Figure]) -> None:
    records = make_records(12, knn=True)
    path = plot_training_signal(records, tmp_path / "a" / "signal.png")
    (figure,) = figures
    loss, diversity, rank, knn = figure.axes
    later = records[1:]
    assert lines_of(loss)["held out"] == (
        [r["step"] for r in later],
        [r["held_out_loss"] for r in later],
    )
    assert lines_of(loss)["training, since the last validation"][1] == [
        r["train_loss"] for r in later
    ]
    assert set(lines_of(diversity)) == {f"stage {s}" for s in (1, 2, 3, 4)}
    assert lines_of(diversity)["stage 2"][1] == [r["feature_diversity_stage2"] for r in records]
    assert lines_of(rank)["effective rank"][1] == [r["effective_rank"] for r in records]
    assert lines_of(knn)["k-NN"][1] == [r["knn_top1"] for r in records]
    assert f"{records[-1]['held_out_loss']:.4f}" in loss.get_title(loc="left")
    assert Image.open(path).format == "PNG"


@pytest.mark.parametrize("count", [1, 2])
def test_short_records(tmp_path: Path, figures: list[Figure], count: int) -> None:
    plot_training_signal(make_records(count), tmp_path / "signal.png")
    loss = figures[0].axes[0]
    assert len(figures[0].axes) == 3
    assert len(lines_of(loss)["held out"][0]) == count


def test_a_diverged_run_is_drawn(tmp_path: Path) -> None:
    records = make_records(4)
    for name in ("held_out_loss", "effective_rank", "feature_diversity_stage1"):
        records[-1][name] = math.nan
    plot_training_signal(records, tmp_path / "signal.png")


def test_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no record"):
        plot_training_signal([], tmp_path / "signal.png")
