"""Pictures of benchmark results, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_OURS = "#1f4e8c"
_OTHERS = "#9db7d5"
_COLOURS = ("#1f4e8c", "#c0504d", "#7f9f4d", "#8064a2")
_OUR_NAMES = ("packed", "ConvNeXtV2", "ours")


def draw_bars(title: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Images per second, a bar an alternative; whiskers span the quartiles.

    Args:
        title: text above the axes.
        rows: rows of one comparison.

    Returns:
        A PNG.
    """
    figure, axes = _figure(0.9 + 0.34 * len(rows))
    names = [row["name"] for row in rows][::-1]
    rates = [row["images_per_second"] for row in rows][::-1]
    quartiles = [
        [row["images"] / row["seconds"][f"{side}_quartile"] for row in rows][::-1]
        for side in ("upper", "lower")
    ]
    whiskers = [
        [max(0.0, rate - low) for rate, low in zip(rates, quartiles[0], strict=True)],
        [max(0.0, high - rate) for rate, high in zip(rates, quartiles[1], strict=True)],
    ]
    colours = [_OURS if name.startswith(_OUR_NAMES) else _OTHERS for name in names]
    axes.barh(names, rates, xerr=whiskers, color=colours, error_kw=dict(linewidth=0.8))
    for y, (rate, up) in enumerate(zip(rates, whiskers[1], strict=True)):
        axes.annotate(f" {rate:.3g}", (rate + up, y), va="center", fontsize=8)
    axes.margins(x=0.12)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("images per second")
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def draw_sweep(sweep: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Time an image against what a sweep varies, a line an alternative.

    Args:
        sweep: name of the sweep.
        rows: its rows, of all points.

    Returns:
        A PNG.
    """
    figure, axes = _figure(3.4)
    by_name: dict[str, list[tuple[Any, float]]] = {}
    for row in rows:
        seconds = row["seconds"]["median"] / row["images"]
        by_name.setdefault(row["name"], []).append((row["point"]["value"], 1e3 * seconds))
    # Ours first, in the colour that it has elsewhere.
    lines = sorted(by_name.items(), key=lambda line: not line[0].startswith(_OUR_NAMES))
    for (name, points), colour in zip(lines, _COLOURS * len(lines), strict=False):
        values, times = zip(*points, strict=True)
        axes.plot(values, times, marker="o", markersize=4, label=name, color=colour)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(sweep)
    axes.set_ylabel("ms an image")
    axes.legend(frameon=False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, height), dpi=110, layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
