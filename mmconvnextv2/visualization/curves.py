"""Reads the scalars that a run logged and draws its loss curve."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmconvnextv2.files import write_atomically

_RAW_COLOUR = "#9db7d5"
_SMOOTH_COLOUR = "#1f4e8c"
_SMOOTH_FROM = 10  # fewer values are shown as they are, with a dot each


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

    Fewer than ten values are drawn as they are, with a dot each. Uses matplotlib's Agg canvas
    directly: no window, no pyplot, no global state.

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

    figure = Figure(figsize=(7.0, 3.8), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    if len(steps) >= _SMOOTH_FROM:
        window = max(5, len(losses) // 20)
        axes.plot(steps, losses, color=_RAW_COLOUR, linewidth=0.9, label="logged")
        smoothed = smooth(losses, window)
        axes.plot(steps, smoothed, color=_SMOOTH_COLOUR, linewidth=2.0, label="smoothed")
        axes.legend(frameon=False)
    else:
        axes.plot(steps, losses, color=_SMOOTH_COLOUR, linewidth=1.5, marker="o", markersize=4)
    axes.set_title(title, loc="left")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
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
    lines = file.read_text(encoding="utf-8").split("\n")
    records: dict[int, float] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline yet: the run is still writing this line
                break
            raise ValueError(f"{file}, line {number} is not JSON: {line[:80]!r}") from error
        if key in record:
            if "step" not in record:
                raise ValueError(f"{file}, line {number} has {key!r} but no 'step'")
            records[int(record["step"])] = float(record[key])
    return records
