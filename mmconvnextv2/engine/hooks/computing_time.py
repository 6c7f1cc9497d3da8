"""Hook that records how long each training iteration computes."""

from __future__ import annotations

import time

import torch
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.registry import HOOKS
from mmengine.runner import Runner

COMPUTING_TIME = "train/computing_time"
"""Name in the message hub: seconds of each iteration."""


@HOOKS.register_module()
class ComputingTimeHook(Hook):
    """Record the computing time of each training iteration; the loader's processes are not in it.

    On a CPU it is the processor time of all threads of this process, which unlike the wall-clock
    hardly depends on other programs. With a GPU it is the wall-clock time until the GPU is done.
    """

    def __init__(self) -> None:
        self._before = 0.0

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Look at the clock."""
        self._before = _now()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Record what has passed."""
        runner.message_hub.update_scalar(COMPUTING_TIME, _now() - self._before)


def _now() -> float:
    """Seconds on the clock that counts."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
