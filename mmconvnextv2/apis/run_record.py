"""What a run has left in its folder: config, logged figures, checkpoint, environment, images."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mmconvnextv2.apis.run_config import CONFIG_FILE, config_of, task_of
from mmconvnextv2.apis.software import read_software
from mmconvnextv2.checkpoint.validity import CheckpointError, newest_valid_checkpoint
from mmconvnextv2.visualization.curves import RunScalars, read_run_scalars

_START = re.compile(r"\d{8}_\d{6}")
_LOGGED = re.compile(r"    (\S[^:]*): (.*)")
_ENVIRONMENT_BEGINS, _ENVIRONMENT_ENDS = "System environment:", "Config:"


@dataclass(frozen=True)
class RunRecord:
    """A run, as its folder tells it.

    Attributes:
        folder: the folder.
        config: what its newest start trained.
        task: "pretraining", "classification", "detection", "segmentation", or "training" where
            the model is of another kind.
        scalars: what it logged; nothing where it has not got that far.
        steps: by name, such as "loss" and "time", the value of every step from the first to the
            last that was logged; empty where the newest checkpoint does not hold them all.
        environment: by name, what the log of the newest start says of software and hardware.
        started: when the newest start began, if it has left a log.
        checkpoint: the newest valid one.
        no_checkpoint: why there is none, else empty.
    """

    folder: Path
    config: Config
    task: str
    scalars: RunScalars
    steps: Mapping[str, Sequence[float]]
    environment: Mapping[str, str]
    started: datetime | None
    checkpoint: Path | None
    no_checkpoint: str


@dataclass(frozen=True)
class SampleImages:
    """Some of a run's images.

    Attributes:
        paths: the files.
        held_out: whether they are of the validation data; else they were trained on.
    """

    paths: Sequence[Path]
    held_out: bool

    @property
    def kind(self) -> str:
        """What to call the images."""
        return "held-out images" if self.held_out else "training images"


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Read what a run of any task has left.

    The config is that of the newest start (``<time>/vis_data/config.py``), else ``config.py``, else
    the one that the newest checkpoint holds.

    Args:
        folder: the work_dir of a run, finished or not.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder, or it holds no run.
        ValueError: config or logged figures cannot be read.
    """
    path = Path(folder)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a run")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: give the folder of a run")
    starts = sorted(p for p in path.iterdir() if p.is_dir() and _START.fullmatch(p.name))
    checkpoint, no_checkpoint = _checkpoint(path)
    config = _config(path, starts, checkpoint)
    try:
        task = task_of(config)
    except ValueError:
        task = "training"
    has_log = any((start / "vis_data" / "scalars.json").is_file() for start in starts)
    scalars = read_run_scalars(path) if has_log else RunScalars()
    return RunRecord(
        folder=path,
        config=config,
        task=task,
        scalars=scalars,
        steps=_every_step(checkpoint, scalars),
        environment=_environment(starts),
        started=datetime.strptime(starts[-1].name, "%Y%m%d_%H%M%S") if starts else None,
        checkpoint=checkpoint,
        no_checkpoint=no_checkpoint,
    )


def sample_images(config: Config, count: int) -> SampleImages:
    """Choose evenly spaced images of a run's validation data or, where it has none, training data.

    Raises:
        FileNotFoundError: the data is not where the config says, seen from here.
        ValueError: the config names no data, or data without a file for each image.
    """
    held_out = innermost_dataset(config, "val_dataloader")
    dataset = held_out or innermost_dataset(config, "train_dataloader")
    if not dataset:
        raise ValueError("the config names no data set")
    scope = config.get("default_scope") or "mmpretrain"
    with DefaultScope.overwrite_default_scope(scope):
        try:
            with redirect_stdout(io.StringIO()):  # pycocotools prints how it reads a file
                data = DATASETS.build({**dataset, "pipeline": []})
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the run's images are not at {dataset.get('data_root')}, seen from the folder in "
                "which this page was written: write it where the run was trained"
            ) from error
    chosen = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)
    infos = [data.get_data_info(int(index)) for index in chosen]
    paths = [Path(info["img_path"]) for info in infos if Path(info.get("img_path", "")).is_file()]
    if not paths:
        raise ValueError("the images are in shards or archives, not in files of their own")
    return SampleImages(paths, bool(held_out))


def innermost_dataset(config: Config, loader: str) -> dict[str, Any]:
    """The data set of a loader without what is wrapped around it; empty if there is none."""
    dataset = (config.get(loader) or {}).get("dataset") or {}
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    return dict(dataset)


def training_crop(config: Config) -> tuple[int, int] | None:
    """Size of the images in training, if the pipeline says it in the usual way.

    Returns:
        Both sides in pixels, in the config's order: (height, width) of an FCMAE.
    """
    for step in reversed(innermost_dataset(config, "train_dataloader").get("pipeline") or ()):
        size = step.get("crop_size") or step.get("scale")
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and [type(side) for side in size] == [int, int]:
            return size[0], size[1]
    return None


def _checkpoint(folder: Path) -> tuple[Path | None, str]:
    try:
        checkpoint = newest_valid_checkpoint(folder)
    except CheckpointError as error:
        return None, str(error)
    return checkpoint, "" if checkpoint else "The run has not saved a checkpoint yet."


def _every_step(checkpoint: Path | None, scalars: RunScalars) -> dict[str, Sequence[float]]:
    """Training's log history in a checkpoint, as `PortableCheckpointHook` writes it."""
    if checkpoint is None:
        return {}
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    histories = (content.get("message_hub") or {}).get("log_scalars") or {}
    last_logged = {name: curve[0][-1] for name, curve in scalars.train.items()}
    found = {}
    for name, history in histories.items():
        kind, _, quantity = name.partition("/")
        if kind == "train" and len(history["values"]) >= last_logged.get(quantity, math.inf):
            found[quantity] = history["values"]
    return found


def _config(folder: Path, starts: Sequence[Path], checkpoint: Path | None) -> Config:
    files = [start / "vis_data" / CONFIG_FILE for start in reversed(starts)]
    for file in (*files, folder / CONFIG_FILE):
        if file.is_file():
            return Config.fromfile(file)
    if checkpoint is not None:
        return config_of(checkpoint)
    below = {log.parents[2].name for log in folder.glob("*/*/vis_data/config.py")}
    hint = f"; there are runs in {', '.join(sorted(below))} below it" if below else ""
    raise FileNotFoundError(
        f"{folder} holds no run: no {CONFIG_FILE}, no log and no checkpoint{hint}"
    )


def _environment(starts: Sequence[Path]) -> dict[str, str]:
    """What the head of a log tells, without what goes over several lines."""
    logs = [start / f"{start.name}.log" for start in starts]
    found: dict[str, str] = {}
    for log in [log for log in logs if log.is_file()][-1:]:
        text = log.read_text(encoding="utf-8", errors="replace")
        block = text.partition(_ENVIRONMENT_BEGINS)[2].partition(_ENVIRONMENT_ENDS)[0]
        for line in block.splitlines():
            if match := _LOGGED.fullmatch(line):
                found.setdefault(match[1], match[2].strip())
        found.update(read_software(text))
    return found
