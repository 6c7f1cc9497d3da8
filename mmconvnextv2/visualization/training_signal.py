"""Draws the record of the held-out images: loss, feature diversity, effective rank, k-NN."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmconvnextv2.analysis.signal_summary import LEAST_DIVERSITY, STAGES, Record, lowest_loss
from mmconvnextv2.files import write_atomically

_HELD_OUT, _TRAIN, _INK = "#1f4e8c", "#9db7d5", "#404040"
_STAGE_COLOURS = ("#c7d9ee", "#8fb3dc", "#4a7fbf", "#1f4e8c")


def plot_training_signal(records: Sequence[Record], path: str | os.PathLike[str]) -> Path:
    """Draw a run's validations over its iterations, one panel for each kind of figure.

    The loss panel leaves out the validation before training, whose loss is that of a decoder that
    has not learned yet and would dwarf all others, once there are two later ones.

    Args:
        records: one for each validation, as `mmconvnextv2.analysis.signal_summary` describes them.
        path: the PNG to write, atomically.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError("there is no record of a validation to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [_draw_loss, _draw_diversity, _draw_rank]
    if any("knn_top1" in record for record in records):
        panels.append(_draw_knn)
    rows, columns = (1, 3) if len(panels) == 3 else (2, 2)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=144, layout="constrained")
    for axes, draw in zip(figure.subplots(rows, columns).ravel(), panels, strict=True):
        draw(axes, records)
        axes.set_xlabel("iteration")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return write_atomically(path, buffer.getvalue())


def _line(axes: Any, records: Sequence[Record], key: str, colour: str, label: str) -> None:
    points = [(record["step"], record[key]) for record in records if key in record]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps, values, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=label
        )


def _draw_loss(axes: Any, records: Sequence[Record]) -> None:
    trained = [record for record in records if record["step"] > 0]
    shown = trained if len(trained) >= 2 else records
    _line(axes, shown, "train_loss", _TRAIN, "training, since the last validation")
    _line(axes, shown, "held_out_loss", _HELD_OUT, "held out")
    best = lowest_loss(shown)
    axes.plot(best["step"], best["held_out_loss"], "o", color=_HELD_OUT, markersize=7, zorder=3)
    axes.set_title(f"Loss (lowest held out: {best['held_out_loss']:.4f})", loc="left")
    axes.legend(frameon=False, fontsize="small")


def _draw_diversity(axes: Any, records: Sequence[Record]) -> None:
    for stage, colour in zip(STAGES, _STAGE_COLOURS, strict=True):
        _line(axes, records, f"feature_diversity_stage{stage}", colour, f"stage {stage}")
    axes.axhspan(0, LEAST_DIVERSITY, color="#f3c6c0", linewidth=0, label="collapsed")
    # Unrelated channels have 0.5, so the legend has the room above.
    axes.set_ylim(0, max(0.75, axes.get_ylim()[1]))
    axes.set_title("Mean cosine distance of the channels", loc="left")
    axes.legend(frameon=False, fontsize="small", ncols=3, loc="upper right")


def _draw_rank(axes: Any, records: Sequence[Record]) -> None:
    _line(axes, records, "effective_rank", _INK, "effective rank")
    axes.set_ylim(0, None)
    axes.set_title("Effective rank of pooled features", loc="left")


def _draw_knn(axes: Any, records: Sequence[Record]) -> None:
    _line(axes, records, "knn_top1", _INK, "k-NN")
    axes.set_title("k-NN accuracy, percent", loc="left")
