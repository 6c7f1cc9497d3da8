"""A training run in a process of its own, for tests that interrupt it and look at what it wrote."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

import mmconvnextv2.datasets
import mmconvnextv2.engine
import mmconvnextv2.models  # noqa: F401
from mmconvnextv2.apis.launch import build_runner, join_processes, leave_processes

TRACE = "trace{rank}.txt"


@HOOKS.register_module()
class TraceHook(Hook):
    """Append every figure of every step, and its rates, to a file: all bits of them.

    A line ends with a line break or was cut by the end of the process.
    """

    priority = "VERY_LOW"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write one line: iteration, place in the epoch, figures, rates."""
        figures = [f"{key}={float(outputs[key]).hex()}" for key in sorted(outputs)]
        rates = [float(group["lr"]).hex() for group in runner.optim_wrapper.param_groups]
        line = " ".join([str(runner.iter), str(runner.epoch), str(batch_idx), *figures, *rates])
        with open(Path(runner.work_dir) / TRACE.format(rank=runner.rank), "a") as file:
            file.write(line + "\n")


@HOOKS.register_module()
class SignalHook(Hook):
    """Let a signal come in one step.

    Args:
        step: number of the step, from 1.
        number: the signal. SIGKILL leaves no time for anything.
    """

    def __init__(self, step: int, number: int) -> None:
        self.step = step
        self.number = number

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Get the signal where it is due."""
        if runner.iter + 1 == self.step:
            os.kill(os.getpid(), self.number)


def train(
    config: Path,
    work_dir: Path,
    *,
    resume_from: Path | None = None,
    interrupt: tuple[int, int] | None = None,
    workers: int = 0,
    environment: dict[str, str] | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    """Train by a config file, with `TraceHook`.

    Args:
        config: the file.
        work_dir: for all that the run writes.
        resume_from: the checkpoint to go on from; None for a fresh run.
        interrupt: step and signal, see `SignalHook`; None for an uninterrupted run.
        workers: processes that read images.
        environment: what torchrun would set, for one of several processes.
        changes: options of the config, as ``{"a.b": value}``.
    """
    torch.set_num_threads(1)
    # Most of the time would go into the compilers' versions, the layout of the config in each
    # checkpoint, and the garbage of what was imported.
    Runner._log_env = lambda self, env_cfg: None
    Config.pretty_text = property(lambda self: "")
    gc.freeze()
    os.environ.update(environment or {})
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(changes or {})
    cfg.work_dir = str(work_dir)
    cfg.train_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
    hooks = [*cfg.custom_hooks, dict(type="TraceHook")]
    if all(hook["type"] != "StopOnSignalHook" for hook in hooks):
        hooks.append(dict(type="StopOnSignalHook"))
    if interrupt is not None:
        step, number = interrupt
        hooks.append(dict(type="SignalHook", step=step, number=int(number)))
    cfg.custom_hooks = hooks
    if resume_from is not None:
        cfg.load_from, cfg.resume = str(resume_from), True
    join_processes(cfg, "pytorch" if environment else "none")
    try:
        build_runner(cfg).train()
    finally:
        leave_processes()
