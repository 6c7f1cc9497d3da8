"""Which runs a page shows: one a task, found in a folder by what they hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mmconvnextv2.apis.run_config import config_of, task_of
from mmconvnextv2.apis.run_record import innermost_dataset
from mmconvnextv2.checkpoint.validity import newest_valid_checkpoint, run_checkpoints

TASKS = ("pretraining", "detection", "segmentation")
_EXAMPLES = 6


@dataclass(frozen=True)
class Run:
    """A run whose model the page can load.

    Attributes:
        task: One of `TASKS`.
        checkpoint: Its newest valid checkpoint.
        config: Its config.
    """

    task: str
    checkpoint: Path
    config: Config


def find_runs(folder: str | os.PathLike[str]) -> tuple[dict[str, Run], list[str]]:
    """Find the newest run of each task in a folder and in the folders directly below it.

    Args:
        folder: A run's folder, or one of several.

    Returns:
        The runs by task, where a task without a run is missing; and a sentence for each run that
        cannot be used.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder of runs at {root}: name one that holds runs, such as "
            "work_dirs/demo, which `make demo` makes"
        )
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    newest = {path: files[0] for path in folders if (files := run_checkpoints(path))}
    runs: dict[str, Run] = {}
    problems = []
    for path in sorted(newest, key=lambda path: newest[path].stat().st_mtime, reverse=True):
        try:
            config = config_of(newest[path])
            task = task_of(config)
            if task in TASKS and task not in runs:
                checkpoint = newest_valid_checkpoint(path)
                assert checkpoint is not None  # there are files with such names
                runs[task] = Run(task, checkpoint, config)
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"{path}: {error}")
    return runs, problems


def command_for(task: str, folder: str | os.PathLike[str], init: Path | None) -> str:
    """The command that makes a missing run.

    Args:
        task: One of `TASKS`.
        folder: Where the page looks for runs.
        init: Checkpoint to fine-tune from, if there is one.
    """
    out = Path(folder)
    if task == "pretraining":
        return f"mmconvnextv2 pretrain --data path/to/images --out {out / 'pretrain'}"
    return (
        f"mmconvnextv2 finetune --task {task} --data path/to/{task}_data \\\n"
        f"    --init {init or 'path/to/weights.pth'} --out {out / task}"
    )


def held_out_images(run: Run, count: int = _EXAMPLES) -> list[Path]:
    """Some images of the run's validation data, evenly spaced.

    Returns:
        At most `count` paths; none where the config names no validation data, where that is no
        longer there, or where its images are no files.
    """
    loader = run.config.get("val_dataloader")
    return [] if loader is None else _images_of(loader.dataset, run, count)


def training_images(run: Run, count: int = _EXAMPLES) -> list[Path]:
    """Some images that the run was trained on, as `held_out_images` finds them."""
    return _images_of(innermost_dataset(run.config, "train_dataloader"), run, count)


def _images_of(settings: dict[str, Any], run: Run, count: int) -> list[Path]:
    with DefaultScope.overwrite_default_scope(run.config.default_scope):
        try:
            dataset = DATASETS.build(settings)
        except (FileNotFoundError, NotADirectoryError):
            return []
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    found = [dataset.get_data_info(int(index)).get("img_path") for index in chosen]
    return [Path(path) for path in found if path is not None and Path(path).is_file()]
