"""Hook that shows a progress bar in a terminal, below the runner's log lines."""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Mapping
from typing import TextIO

from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_REFRESHES = 0.1
_LOSSES_TO_AVERAGE = 20


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show iterations, loss, learning rate, images per second and the time left in one line.

    The bar appears on rank 0 when stdout is a terminal; anywhere else the hook does nothing and
    the log is what it was. While the bar is shown, the lines of the runner's logger are printed
    above it. It vanishes when training ends; should training fail, it is taken down with the hook
    or at the exit of the interpreter, after the traceback, so that the terminal is left in order.
    """

    # After LoggerHook, which may print in the same iteration.
    priority = "VERY_LOW"

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._close: weakref.finalize | None = None
        self._last_refresh = 0.0

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Put up the bar."""
        self._take_down()
        console = Console()
        if not console.is_terminal or console.is_dumb_terminal or not sys.stdout.isatty():
            return
        progress = _make_progress(console)
        progress.add_task(
            "train", total=runner.max_iters, completed=runner.iter, epoch="", numbers=""
        )
        terminals = {handler: handler.stream for handler in _terminal_handlers(runner.logger)}
        self._progress = progress
        self._close = weakref.finalize(self, _stop, progress, terminals)
        progress.start()
        # Once started, rich has put its own object in the place of sys.stdout: what is written to
        # that appears above the bar. The logger still holds the terminal itself.
        for handler in terminals:
            handler.setStream(sys.stdout)

    @master_only
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Move the bar, and redraw it at most ten times a second."""
        if self._progress is None:
            return
        progress, task = self._progress, self._progress.tasks[0]
        done = runner.iter + 1
        progress.update(task.id, completed=done)
        now = time.monotonic()
        if done < runner.max_iters and now - self._last_refresh < _SECONDS_BETWEEN_REFRESHES:
            return
        self._last_refresh = now
        images = _images_per_step(data_batch)
        progress.update(
            task.id,
            epoch=_epoch_text(runner),
            numbers=_numbers_text(runner, images * (task.speed or 0.0)),
        )
        progress.refresh()

    def after_train(self, runner: Runner) -> None:
        """Take down the bar."""
        self._take_down()

    def after_run(self, runner: Runner) -> None:
        """Take down the bar, should it still be there."""
        self._take_down()

    def _take_down(self) -> None:
        if self._close is not None:
            self._close()
        self._progress = None
        self._close = None


def _make_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[epoch]}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}", style="cyan"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        transient=True,
        expand=True,
        # No refresh thread: the loader forks its workers while the bar is up, and a lock that a
        # thread holds at that moment would stay locked in the worker for ever.
        auto_refresh=False,
    )


def _stop(progress: Progress, terminals: dict[logging.StreamHandler, TextIO]) -> None:
    for handler, terminal in terminals.items():
        handler.setStream(terminal)
    progress.stop()


def _terminal_handlers(logger: logging.Logger) -> list[logging.StreamHandler]:
    """The handlers of a logger that write to the terminal themselves, files left out."""
    return [
        handler
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
        and handler.stream.isatty()
    ]


def _images_per_step(data_batch: DATA_BATCH) -> int:
    """Images of a step over all ranks, which have equal batches; 0 for an unknown kind of batch."""
    if not isinstance(data_batch, Mapping) or "inputs" not in data_batch:
        return 0
    inputs = data_batch["inputs"]
    # Contrastive methods deliver a list of views, each a whole batch.
    if isinstance(inputs, list) and inputs and inputs[0].ndim == 4:
        inputs = inputs[0]
    return len(inputs) * get_world_size()


def _epoch_text(runner: Runner) -> str:
    # An iteration-based loop counts in max_iters alone; its max_epochs is 1.
    if runner.max_epochs is None or runner.max_epochs == 1:
        return "train"
    return f"epoch {runner.epoch + 1}/{runner.max_epochs}"


def _numbers_text(runner: Runner, images_per_second: float) -> str:
    # RuntimeInfoHook has already turned these into numbers, so reading them costs no
    # synchronisation with the device.
    scalars = runner.message_hub.log_scalars
    rate = "train/base_lr" if "train/base_lr" in scalars else "train/lr"
    parts = []
    if "train/loss" in scalars:
        parts.append(f"loss {scalars['train/loss'].mean(_LOSSES_TO_AVERAGE):.4f}")
    if rate in scalars:
        parts.append(f"lr {scalars[rate].current():.1e}")
    if images_per_second:
        parts.append(f"{images_per_second:.0f} img/s")
    return "  ".join(parts)
