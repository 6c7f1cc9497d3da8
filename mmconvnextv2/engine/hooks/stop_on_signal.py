"""Hook that ends training in good order when a signal asks for it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmconvnextv2.engine.hooks.durable_checkpoint import DurableCheckpointHook

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What ends a run in good order: the polite kill, Slurm's notice before the time is up, Ctrl-C."""

_SAME_SIGNAL_S = 1.0
"""Seconds within which another signal counts as the same one: launchers, and `timeout`, send one
to the process and once more to its group."""


def exit_code(number: int) -> int:
    """Exit code after a signal has ended a run in good order, as shells count: 128 + its number.

    SIGTERM gives 143, SIGUSR1 138, SIGINT 130.
    """
    return 128 + number


@HOOKS.register_module()
class StopOnSignalHook(Hook):
    """On SIGTERM, SIGUSR1 or Ctrl-C: finish the step, write a checkpoint, exit.

    The process ends with `exit_code`, and ``--resume`` goes on with the next batch. All processes
    stop at the same step, whichever of them got the signal, which costs one tiny message a step.
    An accumulated step is finished whole. A validation is broken off in a single process, and
    finished where there are several; the resumed run makes it again. A second signal, a second or
    more after the first, ends the process at once and saves nothing.

    The checkpoint is `DurableCheckpointHook`'s. Handlers are in place while training lasts, and
    put back then. In a thread other than the main one Python allows none: the run says so and goes
    on without. Loader processes leave signals to the training process.

    The exit is a SystemExit, so that `finally` blocks run.
    """

    # Last of all: schedules, averages and records of the step are complete when it is saved.
    priority = "LOWEST"

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._process = -1
        self._loop: Any = None
        self._number = 0
        self._time = 0.0

    def before_train(self, runner: Runner) -> None:
        """Put the handlers in place."""
        self._put_back()
        self._number = 0
        if _checkpoint_hook(runner) is None:
            runner.logger.warning(
                "a signal will end this run without a checkpoint: it has no DurableCheckpointHook"
            )
        if threading.current_thread() is not threading.main_thread():
            runner.logger.info(
                "training is not in the main thread: no signal stops it in good order"
            )
            return
        self._process, self._loop = os.getpid(), runner.train_loop
        shield_workers(runner.train_dataloader)
        if runner.val_loop is not None:
            shield_workers(runner.val_dataloader)
        self._former = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Stop behind a finished step."""
        wrapper = runner.optim_wrapper
        # Behind a step of the optimizer no process has gradients that a resume would miss.
        if isinstance(wrapper, OptimWrapper) and not wrapper.should_update():
            return
        number = _anybody_s(self._number)
        if number:
            hook = _checkpoint_hook(runner)
            self._leave(runner, number, None if hook is None else partial(hook.save_now, runner))

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: Any = None,
    ) -> None:
        """Break off the validation of a single process; several might not be in the same batch."""
        if self._number and get_world_size() == 1:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # puts the weights of training back
            self._leave_validation(runner, self._number)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Stop behind a validation."""
        number = _anybody_s(self._number)
        if number:
            self._leave_validation(runner, number)

    def after_train(self, runner: Runner) -> None:
        """Put the former handlers back."""
        self._put_back()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked during training
            return
        if not _is_running(self._loop, frame):
            # Training has failed, which no hook is told: the signal is for whoever goes on.
            self._put_back()
            signal.raise_signal(number)
        elif not self._number:
            self._number, self._time = number, time.monotonic()
            name = signal.Signals(number).name
            # No logger, no print: the signal may have interrupted one of them.
            os.write(2, f"{name}: stopping behind this step; once more ends at once\n".encode())
        elif time.monotonic() - self._time > _SAME_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _leave_validation(self, runner: Runner, number: int) -> None:
        hook = _checkpoint_hook(runner)
        if hook is None or runner.iter == 0:
            self._leave(runner, number, None)
        else:
            step = runner.epoch if hook.by_epoch else runner.iter
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            # The checkpoint that this hook would have written before the validation.
            self._leave(runner, number, lambda: hook._save_checkpoint_with_step(runner, step, meta))

    def _leave(self, runner: Runner, number: int, save: Callable[[], object] | None) -> None:
        name = signal.Signals(number).name
        if save is not None:
            save()
        # A launcher that sees one process end may kill the others, and the first one still writes.
        barrier()
        told = "a checkpoint is written" if save is not None else "nothing is saved"
        runner.logger.warning(f"stopped by {name}, {told}; exit code {exit_code(number)}")
        handled = bool(self._former)
        self._put_back()
        if handled and get_world_size() > 1:
            # The launcher's, for the processes that are still on their way out.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(exit_code(number))

    def _put_back(self) -> None:
        for number, handler in self._former.items():
            # None stands for a handler that was not set from Python, and cannot be from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former = {}
        self._loop = None


def shield_workers(loader: DataLoader) -> None:
    """Let the loader's processes, from the next ones on, leave signals to the training process.

    Ctrl-C and most launchers signal a whole group of processes. A loader process that dies of it
    makes the training process fail before it can save.

    Args:
        loader: any loader; without processes it stays as it is.
    """
    initialize = loader.worker_init_fn
    shielded = isinstance(initialize, partial) and initialize.func is _initialize_shielded
    if loader.num_workers and not shielded:
        loader.worker_init_fn = partial(_initialize_shielded, initialize)


def _initialize_shielded(initialize: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # The training process ends its loader processes by SIGTERM, which has to go on working.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_parent_alone, args=(os.getppid(),), daemon=True).start()
    if initialize is not None:
        initialize(worker)


def _end_for_parent_alone(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _checkpoint_hook(runner: Runner) -> DurableCheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, DurableCheckpointHook)), None)


def _anybody_s(number: int) -> int:
    """The signal that any of the processes has got, the highest of several; 0 for none."""
    if get_world_size() == 1:
        return number
    highest = torch.tensor([number])
    all_reduce(highest, op="max")
    return int(highest)


def _is_running(loop: object, frame: FrameType | None) -> bool:
    """Whether a method of a loop is among the calls that lead to a frame."""
    while frame is not None:
        if loop is not None and frame.f_locals.get("self") is loop:
            return True
        frame = frame.f_back
    return False
