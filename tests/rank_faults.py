"""A hook for distributed runs under test: one process ends or stops in the middle of a step."""

from __future__ import annotations

import os
import signal
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class RankFaultHook(Hook):
    """Send one process a signal that it cannot handle, once: not after torchrun's restart.

    Args:
        rank: the process.
        iteration: counted from 0; the batch is there, the step is not taken.
        signal_name: SIGKILL or SIGSTOP.
    """

    def __init__(self, rank: int, iteration: int, signal_name: str = "SIGKILL") -> None:
        self.rank = rank
        self.iteration = iteration
        self.signal = signal.Signals[signal_name]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Send it when it is time."""
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and (runner.rank, runner.iter) == (self.rank, self.iteration):
            os.kill(os.getpid(), self.signal)
