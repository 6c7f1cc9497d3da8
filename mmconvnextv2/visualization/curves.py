"""Reads the scalars that a run logged and draws its loss curve."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmconvnextv2.files import write_atomically

# Readable on white and on black: the picture's background is transparent.
_RAW_COLOUR = "#8fb4e6"
_SMOOTH_COLOUR = "#2f72d6"
_TEXT_COLOUR = "#727b86"
_SMOOTH_FROM = 10  # fewer values are shown as they are, with a dot each
_NO_FIGURE = frozenset({"epoch", "iter", "step"})

Curve = tuple[list[int], list[float]]
"""Steps, in rising order, and values."""


@dataclass(frozen=True)
class RunScalars:
    """All that a run logged.

    Attributes:
        train: by name, what was logged in training; steps are iterations.
        val: by name, what validations measured; steps are epochs where `by_epoch`, else iterations.
        by_epoch: whether the run counts epochs.
    """

    train: Mapping[str, Curve] = field(default_factory=dict)
    val: Mapping[str, Curve] = field(default_factory=dict)
    by_epoch: bool = False


def read_run_scalars(path: str | os.PathLike[str]) -> RunScalars:
    """Read everything that a run logged.

    Starts of one work_dir are put together as in `read_scalars`; a start from the first iteration
    again, which has replaced the run, makes the earlier ones forgotten.

    Args:
        path: as in `read_scalars`.

    Returns:
        The curves; none where nothing has been logged yet.

    Raises:
        FileNotFoundError: There is no such file, or no scalars below the folder.
        ValueError: A line is not JSON.
    """
    train: dict[str, dict[int, float]] = {}
    val: dict[str, dict[int, float]] = {}
    by_epoch = False
    for file in _scalar_files(Path(path)):
        records = [record for _, record in _read_lines(file) if "step" in record]
        training = [record for record in records if "iter" in record]
        if training and training[0]["iter"] <= min(train.get("iter", {}), default=0):
            train, val = {}, {}
        _add_start(train, training)
        _add_start(val, [record for record in records if "iter" not in record])
        if training:
            by_epoch = "epoch" in training[0]
    return RunScalars(_as_curves(train), _as_curves(val), by_epoch)


def _add_start(curves: dict[str, dict[int, float]], records: Sequence[Mapping[str, Any]]) -> None:
    for name in dict.fromkeys(name for record in records for name in record):
        values = {
            int(record["step"]): float(record[name])
            for record in records
            if isinstance(record.get(name), int | float)
        }
        if values:
            first = min(values)
            earlier = {step: v for step, v in curves.get(name, {}).items() if step < first}
            curves[name] = earlier | values


def _as_curves(curves: Mapping[str, Mapping[int, float]]) -> dict[str, Curve]:
    return {
        name: (sorted(values), [values[step] for step in sorted(values)])
        for name, values in curves.items()
        if name not in _NO_FIGURE
    }


def read_scalars(path: str | os.PathLike[str], key: str = "loss") -> tuple[list[int], list[float]]:
    """Read one logged quantity of a run.

    Takes the JSON-lines file that mmengine's local visualizer backend writes
    (`work_dir/<time>/vis_data/scalars.json`), the folder of one start (`work_dir/<time>`), or
    the work_dir itself. A work_dir that was resumed holds one file per start: from its first
    step on, a later start replaces what an earlier one had logged. Lines without the key
    (validation, for example) are passed over, and so is a last line that is still being written.

    Args:
        path: The file, or one of these folders.
        key: Name of the quantity.

    Returns:
        The steps and the values, in rising order of steps.

    Raises:
        FileNotFoundError: There is no such file, or no scalars below the folder.
        ValueError: A line is not JSON, a record with the key has no step, or no record has the
            key.
    """
    path = Path(path)
    values: dict[int, float] = {}
    for file in _scalar_files(path):
        records = _read_records(file, key)
        if records:
            first = min(records)
            values = {step: value for step, value in values.items() if step < first}
            values.update(records)
    if not values:
        raise ValueError(f"{path} holds no record with the key {key!r}")
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def smooth(values: Sequence[float], window: int) -> NDArray[np.float64]:
    """Average over a centred window that shrinks at both ends, so that no lag and no bias arise.

    Values that are not finite are left out of the averages.

    Args:
        values: The curve.
        window: Number of values to average, at least 1; an even number counts as the next odd.

    Returns:
        float64 array as long as `values`; nan where a window has no finite value.

    Raises:
        ValueError: The window is smaller than 1.
    """
    if window < 1:
        raise ValueError(f"the smoothing window must be at least 1, got {window}")
    data = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(data)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, data, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    positions = np.arange(len(data))
    # The same reach on both sides keeps the average of a straight line on the line.
    reach = np.minimum(window // 2, np.minimum(positions, len(data) - 1 - positions))
    low, high = positions - reach, positions + reach + 1
    count = counts[high] - counts[low]
    mean = (sums[high] - sums[low]) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)


def plot_loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    path: str | os.PathLike[str],
    *,
    title: str = "Training loss",
    xlabel: str = "iteration",
    ylabel: str = "loss",
) -> Path:
    """Draw a loss curve: the logged values as a thin line, their smoothed course as a thick one.

    Fewer than ten values are drawn as they are, with a dot each. The background is transparent, and
    the colours suit light and dark pages. Uses matplotlib's Agg canvas directly: no window, no
    pyplot, no global state.

    Args:
        steps: Iterations of the logged values.
        losses: The values, as many as steps.
        path: The PNG to write, atomically.
        title: Text above the axes.
        xlabel: What a step is.
        ylabel: What the values are.

    Returns:
        The path of the picture.

    Raises:
        ValueError: There is no value, or steps and losses differ in number.
    """
    if len(steps) != len(losses) or not steps:
        raise ValueError(
            f"a curve needs as many steps as values, and at least one: got {len(steps)} steps "
            f"and {len(losses)} values"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.1), dpi=136, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    if len(steps) >= _SMOOTH_FROM:
        window = max(5, len(losses) // 20)
        axes.plot(steps, losses, color=_RAW_COLOUR, linewidth=1.0, label="logged")
        smoothed = smooth(losses, window)
        axes.plot(steps, smoothed, color=_SMOOTH_COLOUR, linewidth=2.0, label="smoothed")
        axes.legend(frameon=False, ncols=2, loc="upper right", labelcolor=_TEXT_COLOUR)
    else:
        axes.plot(steps, losses, color=_SMOOTH_COLOUR, linewidth=1.5, marker="o", markersize=4)
    axes.set_title(title, loc="left", color=_TEXT_COLOUR)
    axes.set_xlabel(xlabel, color=_TEXT_COLOUR)
    axes.set_ylabel(ylabel, color=_TEXT_COLOUR)
    axes.tick_params(colors=_TEXT_COLOUR, length=0)
    axes.grid(color=_TEXT_COLOUR, alpha=0.25, linewidth=0.8)
    axes.spines[:].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return write_atomically(path, buffer.getvalue())


def _scalar_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    one_start = path / "vis_data" / "scalars.json"
    if one_start.is_file():
        return [one_start]
    # mmengine names the folder of a start by its time, so that names sort as time does.
    files = sorted(path.glob("*/vis_data/scalars.json"))
    if not files:
        raise FileNotFoundError(
            f"no scalars at {path}: expected a scalars.json, or a folder that holds "
            "vis_data/scalars.json or <time>/vis_data/scalars.json"
        )
    return files


def _read_records(file: Path, key: str) -> dict[int, float]:
    records: dict[int, float] = {}
    for number, record in _read_lines(file):
        if key in record:
            if "step" not in record:
                raise ValueError(f"{file}, line {number} has {key!r} but no 'step'")
            records[int(record["step"])] = float(record[key])
    return records


def _read_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline yet: the run is still writing this line
                return
            raise ValueError(f"{file}, line {number} is not JSON: {line[:80]!r}") from error
