"""Draws line charts as HTML and SVG: they fit any width and both colour schemes, with no script.

The lines are stretched to the width of the page; the text beside them is HTML and keeps its size,
so that a chart can be read on a phone as on a wide screen. `report_style` has the colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_SIDE = 1000.0  # of the SVG's own units, in both directions
_MOST_POINTS = 400
_FEW_POINTS = 13  # that few get a dot each

Role = Literal["main", "faint", "good", "bad", "limit"]
"""What a line is: the subject, its noisy form, references, or a threshold."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: what the legend calls it.
        steps: positions from left to right, in rising order.
        values: as many values; where one is not finite the line is broken.
        role: decides the look.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    role: Role = "main"


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: heading.
        lines: drawn in this order; a chart that is not small has a legend where there are several.
        xlabel: what a step is; a small chart says it only where it is no iteration.
        value: text beside the title, such as the last value.
        size: "hero" is large, with the next two charts beside it; "wide" is as wide as the page.
        y_range: lowest and highest value of the axis; from the values when None.
    """

    title: str
    lines: Sequence[Line]
    xlabel: str = "iteration"
    value: str = ""
    size: Literal["small", "hero", "wide"] = "small"
    y_range: tuple[float, float] | None = None


def chart_html(chart: Chart) -> str:
    """Draw a chart.

    Args:
        chart: what to draw.

    Returns:
        A `<div>` with everything in it.

    Raises:
        ValueError: steps and values of a line differ in number, or no value is finite.
    """
    for line in chart.lines:
        if len(line.steps) != len(line.values):
            raise ValueError(
                f"line {line.name!r} of {chart.title!r} has {len(line.steps)} steps and "
                f"{len(line.values)} values"
            )
    values = [value for line in chart.lines for value in line.values if math.isfinite(value)]
    if not values:
        raise ValueError(f"the chart {chart.title!r} has no finite value to draw")
    steps = [step for line in chart.lines for step in line.steps]
    is_small = chart.size == "small"
    x_axis = _Axis(min(steps), max(steps), ticks=3 if is_small else 6, whole=_all_whole(steps))
    low, high = chart.y_range or _with_margin(min(values), max(values))
    y_axis = _Axis(low, high, ticks=4 if is_small else 5)
    parts = [
        f'<div class="chart {chart.size}">',
        f'<div class="chart-head"><span class="chart-title">{escape(chart.title)}</span>'
        f'<span class="chart-value">{escape(chart.value)}</span></div>',
        f'<div class="plot" role="img" aria-label="{escape(_describe(chart))}">',
        f'<svg viewBox="0 0 {_SIDE:g} {_SIDE:g}" preserveAspectRatio="none" aria-hidden="true">',
        f'<path class="grid" d="{_grid(y_axis)}"/>',
        *(_line_svg(line, x_axis, y_axis) for line in chart.lines),
        "</svg>",
        *(_label("y", "top", 1 - share, text) for share, text in y_axis.labels()),
        *(_label("x", "left", share, text) for share, text in x_axis.labels()),
        "</div>",
        _foot(chart),
        "</div>",
    ]
    return "\n".join(parts)


def format_number(value: float, digits: int = 4) -> str:
    """A number for people: at most `digits` significant digits, and no more than it needs."""
    if 0 < abs(value) < 1e-3:
        return _scientific(value, digits)
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text


def thin_out(
    steps: Sequence[float], values: Sequence[float], most: int = _MOST_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leave points out of a long line so that it looks the same.

    Of each of `most` / 2 equal pieces the lowest and the highest value are kept, and of the whole
    the first and the last point.

    Args:
        steps: positions.
        values: as many values; those that are not finite are kept where a piece has no other.
        most: about how many points to keep; shorter lines stay as they are.

    Returns:
        Steps and values, float64.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(x) <= most:
        return x, y
    kept = {0, len(x) - 1}
    for piece in np.array_split(np.arange(len(x)), most // 2):
        finite = piece[np.isfinite(y[piece])]
        piece = finite if len(finite) else piece[:1]
        kept |= {int(piece[y[piece].argmin()]), int(piece[y[piece].argmax()])}
    index = sorted(kept)
    return x[index], y[index]


class _Axis:
    """Range and ticks of one direction."""

    def __init__(self, low: float, high: float, ticks: int, whole: bool = False) -> None:
        from matplotlib.ticker import MaxNLocator

        self.low, self.high = low, high if high > low else low + 1.0
        locator = MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10], integer=whole)
        slack = 1e-9 * (self.high - self.low)
        self.ticks = [
            # A tick that should be 0 may come as 1e-17.
            0.0 if abs(tick) < slack else float(tick)
            for tick in locator.tick_values(self.low, self.high)
            if self.low - slack <= tick <= self.high + slack
        ]

    def place(self, value: float) -> float:
        """Share of the range below a value."""
        return (value - self.low) / (self.high - self.low)

    def labels(self) -> list[tuple[float, str]]:
        """Place and text of each tick, all with as many decimals as one of them needs."""
        texts = [format_number(tick) for tick in self.ticks]
        if any("e" in text for text in texts):
            texts = [_scientific(tick) if tick else "0" for tick in self.ticks]
        else:
            decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
            texts = [f"{tick:,.{decimals}f}" if tick else "0" for tick in self.ticks]
        return [(self.place(tick), text) for tick, text in zip(self.ticks, texts, strict=True)]


def _scientific(value: float, digits: int = 4) -> str:
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    # What is never negative gets no axis that says it could be.
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def _all_whole(numbers: Sequence[float]) -> bool:
    return all(float(number).is_integer() for number in numbers)


def _grid(y_axis: _Axis) -> str:
    heights = [_SIDE * (1 - y_axis.place(tick)) for tick in y_axis.ticks] + [_SIDE]
    return "".join(f"M0 {height:.1f}H{_SIDE:g}" for height in heights)


def _line_svg(line: Line, x_axis: _Axis, y_axis: _Axis) -> str:
    steps, values = thin_out(line.steps, line.values)
    path, dots, pen_is_down = [], [], False
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            pen_is_down = False
            continue
        height = min(1.0, max(0.0, y_axis.place(value)))  # a given range may be narrower
        point = f"{_SIDE * x_axis.place(step):.1f} {_SIDE * (1 - height):.1f}"
        path.append(f"{'L' if pen_is_down else 'M'}{point}")
        dots.append(f"M{point}h0")
        pen_is_down = True
    svg = f'<path class="{line.role}" d="{"".join(path)}"/>'
    if line.role == "main" and len(dots) < _FEW_POINTS:
        svg += f'<path class="{line.role} dots" d="{"".join(dots)}"/>'
    return svg


def _label(axis: str, side: str, share: float, text: str) -> str:
    return f'<span class="{axis}" style="{side}:{100 * share:.2f}%">{escape(text)}</span>'


def _foot(chart: Chart) -> str:
    if chart.size == "small" and chart.xlabel == Chart.xlabel:
        return ""
    keys = [f'<span class="key {line.role}">{escape(line.name)}</span>' for line in chart.lines]
    legend = f"<span>{''.join(keys)}</span>" if len(keys) > 1 and chart.size != "small" else ""
    xlabel = f'<span class="xlabel">{escape(chart.xlabel)}</span>'
    return f'<div class="chart-foot">{legend}{xlabel}</div>'


def _describe(chart: Chart) -> str:
    """The chart in words, for those who cannot see it."""
    line = next((line for line in chart.lines if line.role == "main"), chart.lines[0])
    finite = [p for p in zip(line.steps, line.values, strict=True) if math.isfinite(p[1])]
    if not finite:
        return chart.title
    (first, start), (last, end) = finite[0], finite[-1]
    return (
        f"{chart.title}: {format_number(start)} at {chart.xlabel} {first:g}, "
        f"{format_number(end)} at {chart.xlabel} {last:g}"
    )
