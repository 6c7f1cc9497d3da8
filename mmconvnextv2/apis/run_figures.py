"""The figures of a run for its report: tiles to open with, curves, and tables of metrics."""

from __future__ import annotations

import math
import re

from mmconvnextv2.apis.run_facts import count_parameters, images_per_step, short_count
from mmconvnextv2.apis.run_record import RunRecord
from mmconvnextv2.apis.whole_run import (
    COCO_NOTHING,
    LAST_STEPS,
    mean_of_last_steps,
    median_seconds,
)
from mmconvnextv2.visualization.charts import Chart, Line, format_number
from mmconvnextv2.visualization.curves import Curve, smooth
from mmconvnextv2.visualization.report import Tile

_MAIN_METRICS = {
    "pretraining": ("held_out_loss",),
    "classification": ("accuracy/top1",),
    "detection": ("coco/bbox_mAP", "coco/segm_mAP"),
    "segmentation": ("mIoU", "aAcc"),
}
_METRIC_NAMES = {
    "accuracy/top1": "Top-1 accuracy",
    "accuracy/top5": "Top-5 accuracy",
    "mIoU": "Mean IoU",
    "mAcc": "Mean class accuracy",
    "aAcc": "Pixel accuracy",
    "held_out_loss": "Held-out loss",
    "effective_rank": "Effective rank",
    "knn_top1": "k-NN accuracy",
}
_COCO_METRIC = re.compile(r"coco/(bbox|segm)_mAP(?:_(50|75|s|m|l))?")
_COCO_PARTS = {
    "50": "50",
    "75": "75",
    "s": ", small",
    "m": ", medium",
    "l": ", large",
}
_TRAIN_NAMES = {
    "loss_cls": "Class loss",
    "loss_bbox": "Box loss",
    "loss_mask": "Mask loss",
    "loss_rpn_cls": "RPN class loss",
    "loss_rpn_bbox": "RPN box loss",
    "decode.loss_ce": "Cross-entropy",
    "decode.loss_dice": "Dice loss",
    "acc": "Box head's accuracy, %",
    "decode.acc_seg": "Pixel accuracy, %",
    "base_lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "time": "Seconds a step",
}
_PERCENT = re.compile(r"accuracy/.*|mIoU|mAcc|aAcc|knn_top1")
_LOWER_IS_BETTER = re.compile(r".*loss.*")
_NOT_DRAWN = frozenset({"loss", "lr", "data_time", "memory"})
_MOST_SMALL_CHARTS = 12
_SMOOTH_FROM = 30
_MMENGINES_WINDOW = 10  # of a config that says nothing


def run_tiles(record: RunRecord) -> list[Tile]:
    """The figures that the page opens with: what was reached, the loss, time and speed."""
    tiles = []
    sizes = count_parameters(record) if record.task == "pretraining" else None
    if sizes is not None:
        tiles.append(Tile("Encoder", short_count(sizes[0]), "parameters"))
    metrics = dict(_ordered_metrics(record))
    for name in _MAIN_METRICS.get(record.task, ()):
        if name in metrics:
            text = metric_text(name, metrics[name][1][-1])
            tiles.append(Tile(metric_name(name), text, "held-out images, last validation"))
    if "loss" in record.scalars.train:
        tiles.append(_loss_tile(record))
    if "time" in record.scalars.train:
        tiles += _time_tiles(record)
    return tiles


def run_charts(record: RunRecord) -> list[Chart]:
    """The loss, then small charts: validations, parts of the loss, learning rate, gradient norm."""
    scalars = record.scalars
    charts = []
    if "loss" in scalars.train:
        charts.append(_loss_chart(record))
    xlabel = "epoch" if scalars.by_epoch else "iteration"
    small = [
        Chart(
            metric_name(name),
            [Line(name, *curve)],
            xlabel,
            f"last {metric_text(name, curve[1][-1])}",
        )
        for name, curve in _ordered_metrics(record)
        if len(curve[0]) > 1
    ]
    # Parts of the loss before the learning rate and its like.
    order = list(_TRAIN_NAMES)
    names = sorted(scalars.train, key=lambda name: order.index(name) if name in order else -1)
    for name in names:
        curve = scalars.train[name]
        if name not in _NOT_DRAWN and len(curve[0]) > 1:
            lines = [Line(name, *curve)] if name == "base_lr" else _noisy(curve)
            text = _value_beside(record, name)
            small.append(Chart(_TRAIN_NAMES.get(name, name), lines, value=text))
    return [*charts, *(chart for chart in small[:_MOST_SMALL_CHARTS] if _has_finite(chart))]


def logged_window(record: RunRecord) -> int:
    """Steps over which mmengine averages a loss, a time or a gradient norm before it logs it."""
    return (record.config.get("log_processor") or {}).get("window_size", _MMENGINES_WINDOW)


def last_metrics(record: RunRecord) -> list[tuple[str, str]]:
    """What the last validation measured."""
    metrics = _ordered_metrics(record)
    return [(metric_name(name), metric_text(name, values[-1])) for name, (_, values) in metrics]


def metric_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """Table of what validations measured: last value, best value, and when that was."""
    unit = "epoch" if record.scalars.by_epoch else "iteration"
    metrics = _ordered_metrics(record)
    rows = [("On held-out images", "last", "best", f"best at {unit}")]
    for name, (steps, values) in metrics:
        finite = [i for i, value in enumerate(values) if math.isfinite(value)]
        if not finite:
            continue
        pick = min if _LOWER_IS_BETTER.fullmatch(name) else max
        best = pick(finite, key=lambda i: values[i])
        last, top = metric_text(name, values[-1]), metric_text(name, values[best])
        rows.append((metric_name(name), last, top, f"{steps[best]:,}"))
    return rows


def metric_name(name: str) -> str:
    """A logged metric as people call it."""
    if match := _COCO_METRIC.fullmatch(name):
        kind = "Box" if match[1] == "bbox" else "Mask"
        return f"{kind} AP{_COCO_PARTS.get(match[2] or '', '')}"
    if name.startswith("feature_diversity_stage"):
        return f"Feature diversity, stage {name[-1]}"
    return _METRIC_NAMES.get(name, name)


def metric_text(name: str, value: float) -> str:
    """The value of a logged metric, with its unit."""
    return f"{value:.1f} %" if _PERCENT.fullmatch(name) else f"{value:.3f}"


def _ordered_metrics(record: RunRecord) -> list[tuple[str, Curve]]:
    """Metrics with the most telling first, without those of object sizes that do not occur."""
    first = _MAIN_METRICS.get(record.task, ())
    metrics = [
        (name, curve)
        for name, curve in record.scalars.val.items()
        if name not in ("time", "data_time")
        and not (name.startswith("coco/") and curve[1][-1] == COCO_NOTHING)
    ]

    def place(item: tuple[str, Curve]) -> tuple[int, bool]:
        name = item[0]
        return first.index(name) if name in first else len(first), name.startswith("feature")

    return sorted(metrics, key=place)


def _loss_tile(record: RunRecord) -> Tile:
    losses = record.steps.get("loss")
    if losses:
        count = min(LAST_STEPS, len(losses))
        value, first = mean_of_last_steps(losses), f"{losses[0]:.3f} at the first step"
        return Tile(f"Loss, mean of the last {count} steps", f"{value:.3f}", first)
    steps, values = record.scalars.train["loss"]
    first = f"{values[0]:.3f} at iteration {steps[0]:,}"
    count = min(logged_window(record), steps[-1])
    label = f"Loss, mean of {count} steps up to iteration {steps[-1]:,}"
    return Tile(label, f"{values[-1]:.3f}", first)


def _time_tiles(record: RunRecord) -> list[Tile]:
    iterations = record.scalars.train["time"][0][-1]
    times = record.steps.get("time")
    if times:
        iterations, total = len(times), math.fsum(times)
    else:
        total = _seconds(record.scalars.train["time"])
    images = images_per_step(record)[1]
    speed = images / _median_step(record)
    hint = f"median step, {format_number(_median_step(record), 3)} s"
    return [
        Tile(
            "Time in training steps", _duration(total), f"{iterations:,} steps of {images} images"
        ),
        Tile("Images a second", format_number(speed, 2 if speed < 10 else 3), hint),
    ]


def _median_step(record: RunRecord) -> float:
    """Seconds of the median step, or of the median logged value where not every step is known."""
    return median_seconds(record.steps.get("time") or record.scalars.train["time"][1])


def _loss_chart(record: RunRecord) -> Chart:
    tile = _loss_tile(record)
    text = f"{tile.value}, {tile.label.partition(', ')[2]}"
    return Chart("Loss", _noisy(record.scalars.train["loss"]), value=text, size="hero")


def _value_beside(record: RunRecord, name: str) -> str:
    """What stands beside the title of a small chart of training."""
    if name == "base_lr":
        return ""
    if name == "time":
        return f"median {format_number(_median_step(record), 3)}"
    return f"last {format_number(record.scalars.train[name][1][-1], 3)}"


def _noisy(curve: Curve) -> list[Line]:
    """A curve as logged and, where it is long enough, smoothed."""
    steps, values = curve
    if len(steps) < _SMOOTH_FROM:
        return [Line("logged", steps, values)]
    smoothed = smooth(values, max(5, len(values) // 20)).tolist()
    return [Line("logged", steps, values, "faint"), Line("smoothed", steps, smoothed)]


def _has_finite(chart: Chart) -> bool:
    return any(math.isfinite(value) for line in chart.lines for value in line.values)


def _seconds(time: Curve) -> float:
    """Sum of all iterations' times: each logged value stands for the iterations before it."""
    steps, values = time
    before = [0, *steps[:-1]]
    return sum((now - last) * v for now, last, v in zip(steps, before, values, strict=True))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
