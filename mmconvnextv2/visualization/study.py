"""Draws how a result depends on one quantity: a curve a series, with the seeds as dots."""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmconvnextv2.files import write_atomically

COLOURS = ("#1f4e8c", "#c2571a", "#3a7d44", "#7a4a8c", "#6b6b6b")
"""Of the series, in their order."""

_MARKERS = "osD^v"
_SHIFT = 0.012  # of the axis, so that bars of two series do not hide each other


def plot_dependence(
    series: Mapping[str, Mapping[float, Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> Path:
    """Draw means joined by lines, one standard deviation as bars, and single values as dots.

    Args:
        series: values by x, by the name of their series; at most five series. A name may be empty
            where there is one series.
        path: the PNG to write, atomically.
        title: text above the axes.
        xlabel: what x is.
        ylabel: what the values are.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no series, too many, or one with nothing to draw.
    """
    empty = [name for name, points in series.items() if not points or not all(points.values())]
    if not 1 <= len(series) <= len(COLOURS) or empty:
        raise ValueError(
            f"1 to {len(COLOURS)} series can be drawn, each with values: got {list(series)}, of "
            f"which empty: {empty}"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    ticks = sorted({x for points in series.values() for x in points})
    step = _SHIFT * (ticks[-1] - ticks[0])
    styles = zip(series.items(), COLOURS, _MARKERS, strict=False)
    for i, ((name, points), colour, marker) in enumerate(styles):
        shift = step * (i - (len(series) - 1) / 2)
        xs = sorted(points)
        means = [statistics.fmean(points[x]) for x in xs]
        stds = [statistics.stdev(points[x]) if len(points[x]) > 1 else 0.0 for x in xs]
        axes.errorbar(
            [x + shift for x in xs],
            means,
            stds,
            capsize=4,
            color=colour,
            elinewidth=1.2,
            label=name,
            linewidth=1.8,
            marker=marker,
            markersize=6,
            zorder=3,
        )
        for x in xs:
            axes.scatter(
                [x + shift] * len(points[x]), points[x], s=12, color=colour, alpha=0.45, zorder=2
            )
    axes.set_xticks(ticks)
    axes.margins(x=0.08)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if any(series):
        axes.legend(frameon=False, fontsize=9)
    axes.annotate(
        "mean ± 1 standard deviation; small dots: single seeds",
        (1, -0.2),
        xycoords="axes fraction",
        ha="right",
        fontsize=7,
        color="#6b6b6b",
    )
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return write_atomically(path, buffer.getvalue())
