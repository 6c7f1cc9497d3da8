"""Draws a comparison over several seeds: a dot a run, mean and spread of each row beside them."""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmconvnextv2.files import write_atomically

_DOT_COLOUR = "#1f4e8c"
_SPREAD_COLOUR = "#9db7d5"
_JITTER = 0.1  # of a row's height, so that equal values do not hide each other


def plot_comparison(
    values: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    *,
    title: str,
    xlabel: str,
) -> Path:
    """Draw single values as dots, their mean as a line and one standard deviation as a bar.

    Args:
        values: values of each row by its name; the first row is drawn at the top.
        path: the PNG to write, atomically.
        title: text above the axes.
        xlabel: what the values are.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no row, or a row has no value.
    """
    empty = [name for name, row in values.items() if not row]
    if not values or empty:
        raise ValueError(f"every row needs a value: got {list(values)}, of which empty: {empty}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 1.3 + 0.6 * len(values)), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(values.values()):
        mean = statistics.fmean(row)
        if len(row) > 1:
            std = statistics.stdev(row)
            axes.barh(y, 2 * std, left=mean - std, height=0.5, color=_SPREAD_COLOUR, zorder=1)
        axes.plot([mean, mean], [y - 0.32, y + 0.32], color=_DOT_COLOUR, linewidth=2, zorder=2)
        heights = [y + _JITTER * (i - (len(row) - 1) / 2) for i in range(len(row))]
        axes.scatter(row, heights, s=26, color=_DOT_COLOUR, edgecolors="white", zorder=3)
        axes.annotate(
            f"{mean:.3g}", (mean, y - 0.34), ha="center", va="bottom", fontsize=8, zorder=4
        )
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.45, -0.65)
    axes.use_sticky_edges = False  # a bar would end the axis where it begins
    axes.margins(x=0.08)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(f"{xlabel}; dots: single seeds, line: mean, bar: ± 1 standard deviation")
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return write_atomically(path, buffer.getvalue())
