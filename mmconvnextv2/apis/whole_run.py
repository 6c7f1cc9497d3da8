"""From a filled-in config to a finished run and its figures: what all calls on a folder share."""

from __future__ import annotations

import importlib.util
import inspect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmconvnextv2.apis.cfg_options import apply_options
from mmconvnextv2.apis.launch import last_checkpoint, train
from mmconvnextv2.apis.machine import DEVICES, choose_device
from mmconvnextv2.apis.results import RunResult
from mmconvnextv2.apis.run_config import CONFIG_FILE
from mmconvnextv2.apis.run_folder import Resume
from mmconvnextv2.nn.arguments import check_count

TRACKERS = {"wandb": "WandbVisBackend", "mlflow": "MLflowBackend"}
"""Backend by the name of its package; TensorBoard's is in every config."""

LAST_STEPS = 10
"""Steps over which the last loss of a run is averaged."""

_SETTINGS = {
    *inspect.signature(Runner.__init__).parameters,
    *("custom_imports", "find_unused_parameters", "model_wrapper_cfg", "runner_type"),
}
COCO_NOTHING = -1.0
"""COCO's value of a metric for which the images have no object, such as a large one."""


def training_device(device: str) -> torch.device:
    """The device that a run computes on.

    Raises:
        ValueError: it is none of `DEVICES`, or "cuda" where there is no GPU.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    return choose_device(device)


def accumulated_batches(batch_size: int, effective_batch: int | None) -> int:
    """Forward passes of one optimizer step.

    Args:
        batch_size: images of one forward pass.
        effective_batch: images behind one step; `batch_size` when None.

    Raises:
        ValueError: a number is below 1, or the second is no multiple of the first.
    """
    check_count("batch_size", batch_size)
    if effective_batch is None:
        return 1
    check_count("effective_batch", effective_batch)
    if effective_batch % batch_size:
        nearest = max(1, round(effective_batch / batch_size)) * batch_size
        raise ValueError(
            f"effective_batch must be a multiple of batch_size={batch_size}, got "
            f"{effective_batch}: take {nearest}, or another batch_size"
        )
    return effective_batch // batch_size


def run_config(
    cfg: Config, out: Path, device: torch.device, tracker: str | None, options: Mapping[str, Any]
) -> Config:
    """Complete a config that was filled in for a folder.

    Args:
        cfg: the config.
        out: folder of the run.
        device: where to compute.
        tracker: a name of `TRACKERS`, beside TensorBoard; None for no other.
        options: further settings by dotted key.

    Returns:
        A config of its own, which is written as ``config.py`` when the run begins. It has settings
        alone, none of the knobs from which they were built: each can be edited to an effect.

    Raises:
        ValueError: the tracker is unknown or not installed, or an option leads nowhere.
    """
    settings = {key: value for key, value in cfg.to_dict().items() if key in _SETTINGS}
    cfg = Config(settings, cfg_text=cfg.text, filename=str(out / CONFIG_FILE))
    cfg.work_dir = str(out)
    cfg.experiment_name = out.resolve().name
    if device.type == "cpu" and torch.cuda.is_available():
        cfg.runner_type = "CpuRunner"
    if tracker is not None:
        cfg.visualizer.vis_backends.append(_tracker(tracker, cfg.experiment_name))
    apply_options(cfg, options)
    return cfg


def _tracker(name: str, run_name: str) -> dict[str, Any]:
    if name not in TRACKERS:
        raise ValueError(
            f"tracker must be one of {', '.join(TRACKERS)} or None, got {name!r}; TensorBoard is "
            "always on"
        )
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"the tracker {name} is not installed: pip install {name}")
    called = dict(exp_name=run_name) if name == "mlflow" else dict(init_kwargs=dict(name=run_name))
    return dict(type=TRACKERS[name], **called)


def run(cfg: Config, task: str, *, resume: Resume = False, overwrite: bool = False) -> RunResult:
    """Train, and collect what came of it.

    Args:
        cfg: what `run_config` returned.
        task: name of the task.
        resume: see `mmconvnextv2.apis.launch.train`.
        overwrite: the same.

    Raises:
        As `mmconvnextv2.apis.launch.train`.
    """
    start = time.perf_counter()
    runner = train(cfg, resume=resume, overwrite=overwrite)
    seconds = time.perf_counter() - start
    out = Path(cfg.work_dir)
    images = cfg.train_dataloader.batch_size
    return RunResult(
        task=task,
        out=out,
        config=out / CONFIG_FILE,
        checkpoint=last_checkpoint(runner),
        metrics=_metrics(runner),
        seconds=seconds,
        images_per_second=images / median_seconds(_history(runner, "train/time")),
    )


def mean_of_last_steps(losses: Sequence[float] | np.ndarray) -> float:
    """The last loss of a run, as `RunResult` has it.

    Args:
        losses: the loss of every step; of fewer than `LAST_STEPS`, all count.
    """
    return float(np.mean(losses[-LAST_STEPS:]))


def median_seconds(step_seconds: Sequence[float] | np.ndarray) -> float:
    """The time of a step behind the images a second of a `RunResult`.

    Args:
        step_seconds: the time of every step.
    """
    return float(np.median(step_seconds))


def _metrics(runner: Runner) -> dict[str, float]:
    losses = _history(runner, "train/loss")
    found = dict(first_loss=float(losses[0]), last_loss=mean_of_last_steps(losses))
    for name, history in runner.message_hub.log_scalars.items():
        kind, _, metric = name.partition("/")
        if kind != "val" or metric in ("time", "data_time"):
            continue
        value = float(history.current())
        if value != COCO_NOTHING:
            found[metric] = value
    return found


def _history(runner: Runner, name: str) -> np.ndarray:
    """What was logged at every step of the run, parts before a resume included."""
    return np.asarray(runner.message_hub.get_scalar(name).data[0], dtype=float)
