"""Hook that records how much the training process computes, whatever else the machine does."""

from __future__ import annotations

import time

from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.registry import HOOKS
from mmengine.runner import Runner

COMPUTING_TIME = "train/computing_time"
"""Name in the message hub: seconds of each iteration."""


@HOOKS.register_module()
class ComputingTimeHook(Hook):
    """Record the processor time of each training iteration, over all threads of this process.

    Unlike the wall-clock it hardly depends on other programs. The loader's processes and a GPU's
    work are not in it.
    """

    def __init__(self) -> None:
        self._before = 0.0

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Look at the clock."""
        self._before = time.process_time()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Record what has passed."""
        runner.message_hub.update_scalar(COMPUTING_TIME, time.process_time() - self._before)
