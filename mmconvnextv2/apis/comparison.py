"""Whether continued weights are worth it: initialisations compared on a small labelled set."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from scipy import stats

from mmconvnextv2.apis.comparison_recipes import (
    METRICS,
    FineTuning,
    RasterInput,
    count_validation_images,
    fine_tuning_config,
    recognize_task,
    with_weights,
)
from mmconvnextv2.apis.study import (
    Arm,
    Metrics,
    Results,
    Summary,
    markdown_table,
    run_study,
    summarize,
)
from mmconvnextv2.checkpoint import convert_state_dict, fetch_checkpoint, read_checkpoint
from mmconvnextv2.files import write_atomically
from mmconvnextv2.nn.convnextv2 import Arch
from mmconvnextv2.visualization.comparison import plot_comparison

SCRATCH = "scratch"
"""Name of the row that starts at random."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        task: "classification", "detection" or "segmentation".
        metric: name of the metric that decides; higher is better.
        results: metrics of all runs, by row and seed.
        verdicts: plain sentences, one for each pair of rows.
        files: the table (Markdown), the figures (JSON) and the picture (PNG).
    """

    task: str
    metric: str
    results: Results
    verdicts: tuple[str, ...]
    files: tuple[Path, ...]


def compare_initializations(
    data: str | os.PathLike[str],
    checkpoints: Mapping[str, str | os.PathLike[str]],
    work_dir: str | os.PathLike[str] = "work_dirs/comparison",
    *,
    task: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1000,
    image_size: int | None = None,
    batch_size: int | None = None,
    num_workers: int = 2,
    raster: RasterInput | None = None,
    inflate_stem: str = "mean",
    reduce_zero_label: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
    run: Callable[[Config], Metrics] | None = None,
) -> Comparison:
    """Fine-tune from scratch and from each checkpoint, at one budget and several seeds.

    All rows have the same recipe, steps, batches and seeds, and are judged on the same validation
    images. One thing differs beside the weights: where the recipe lowers the rate of the encoder's
    early layers, the encoder that starts at random keeps the full rate. A call that was stopped is
    repeated to go on; finished runs are not repeated.

    Args:
        data: the labelled set, laid out as in `mmconvnextv2.apis.comparison_recipes.LAYOUTS`.
        checkpoints: weights by the name of their row: path, URL or hub id.
        work_dir: folder for the runs and the report.
        task: a name of `LAYOUTS`; recognised from the layout when None.
        seeds: seeds of the runs. Fewer than three say little about the spread.
        steps: optimizer steps of each run.
        image_size: side of the images in training, in pixels; the recipe's when None.
        batch_size: images of a step; the recipe's when None.
        num_workers: processes that read images.
        raster: how to read and normalise images that are not 8-bit RGB.
        inflate_stem: "mean" or "sum", for weights of another number of channels.
        reduce_zero_label: label 0 of a map is unlabelled, and classes start at 1.
        cfg_options: further settings of the config, as ``{"a.b": value}``.
        run: what trains a config and returns its metrics; for tests and other launchers.

    Returns:
        The metrics, and what they say.

    Raises:
        FileNotFoundError: data or a checkpoint is not there.
        StudyMismatchError: `work_dir` holds runs of other settings, weights or code.
        StateDictMismatch: a checkpoint is no complete ConvNeXt V2.
        ValueError: an argument or the labelled set is outside what is allowed.
    """
    if not checkpoints or SCRATCH in checkpoints:
        raise ValueError(
            f"name at least one checkpoint, and none {SCRATCH!r}, which is the row without: "
            f"got {dict(checkpoints)}"
        )
    task = task or recognize_task(Path(data))
    files = {name: fetch_checkpoint(location) for name, location in checkpoints.items()}
    settings = FineTuning(
        data=Path(data),
        task=task,
        arch=common_arch(files),
        steps=steps,
        image_size=image_size,
        batch_size=batch_size,
        num_workers=num_workers,
        raster=raster,
        reduce_zero_label=reduce_zero_label,
    )
    cfg = fine_tuning_config(settings)
    cfg.merge_from_dict(dict(cfg_options or {}))
    arms = [
        Arm(
            name,
            with_weights(cfg, checkpoint, inflate_stem),
            inputs=(settings.data, *([] if checkpoint is None else [checkpoint])),
        )
        for name, checkpoint in {SCRATCH: None, **files}.items()
    ]
    results = run_study(arms, seeds, work_dir, run)
    return _report(task, results, count_validation_images(cfg), steps, Path(work_dir))


def common_arch(files: Mapping[str, Path]) -> Arch:
    """The size that all checkpoints have.

    Raises:
        ValueError: they differ.
        StateDictMismatch: one is no complete ConvNeXt V2.
    """
    found = {name: convert_state_dict(read_checkpoint(path)) for name, path in files.items()}
    sizes = {name: (c.depths, c.channels) for name, c in found.items()}
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name} is {found[name].arch} {size}" for name, size in sizes.items())
        raise ValueError(f"weights of different sizes cannot be compared: {named}")
    first = next(iter(found.values()))
    return (
        first.arch if first.arch != "custom" else dict(depths=first.depths, channels=first.channels)
    )


def judge(name: str, ours: Summary, other_name: str, other: Summary) -> str:
    """Say in a sentence whether two rows differ by more than the seeds do.

    They do where the 95 % confidence interval of the difference of means, by Welch's t-test,
    leaves out 0.
    """
    difference = ours.mean - other.mean
    text = f"{name} against {other_name}: {difference:+.3g}"
    if min(len(ours.values), len(other.values)) < 2:
        return f"{text}; one seed has no spread, so this decides nothing: use three or more"
    if ours.std == other.std == 0:
        low = high = difference
    else:
        test = stats.ttest_ind(ours.values, other.values, equal_var=False)
        low, high = (float(v) for v in test.confidence_interval(CONFIDENCE))
    text += f" ({CONFIDENCE:.0%} interval {low:+.3g} to {high:+.3g})"
    if low <= 0 <= high:
        return f"{text}: within the spread of the seeds, so these runs do not tell them apart"
    better, worse = (name, other_name) if difference > 0 else (other_name, name)
    return f"{text}: beyond the spread of the seeds, {better} is better than {worse}"


def _report(
    task: str, results: Results, num_validation: int, steps: int, work_dir: Path
) -> Comparison:
    metric = METRICS[task]
    rows = summarize(results, metric)
    verdicts = tuple(
        judge(later, rows[later], earlier, rows[earlier])
        for earlier, later in itertools.combinations(rows, 2)
    )
    num_seeds = len(next(iter(rows.values())).values)
    footing = (
        f"{task}, {steps} steps a run, {num_seeds} seeds, {num_validation} validation images. The "
        "spread is that of the seeds: other training or validation images would move all rows."
    )
    lines = [
        "# Comparison of initialisations\n",
        markdown_table(results, [metric]),
        *(f"- {verdict}." for verdict in verdicts),
        f"\n{footing}\n",
    ]
    content = dict(
        task=task,
        metric=metric,
        steps=steps,
        validation_images=num_validation,
        rows={
            name: dict(
                mean=row.mean,
                std=None if math.isnan(row.std) else row.std,
                values=list(row.values),
            )
            for name, row in rows.items()
        },
        verdicts=verdicts,
    )
    files = (
        write_atomically(work_dir / "comparison.md", "\n".join(lines).encode()),
        write_atomically(
            work_dir / "comparison.json", (json.dumps(content, indent=2) + "\n").encode()
        ),
        plot_comparison(
            {name: row.values for name, row in rows.items()},
            work_dir / "comparison.png",
            title=f"{task} after {steps} steps",
            xlabel=metric,
        ),
    )
    return Comparison(task, metric, results, verdicts, files)
