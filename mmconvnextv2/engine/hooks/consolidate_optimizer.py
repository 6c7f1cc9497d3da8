"""Hook that makes a sharded optimizer's state whole whenever a checkpoint is written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvnextv2.engine.sharded_optimizer import ShardedOptimizer


@HOOKS.register_module()
class ConsolidateOptimizerHook(Hook):
    """Collect the shares of a `ShardedOptimizer` in the first process before each save.

    All processes call `Runner.save_checkpoint`, and all but the first return from it at once, so
    nothing inside of it can collect anything. While training lasts, this hook therefore puts the
    collecting in front of that method of its runner, whoever calls it and for whatever reason.
    What is collected is on the CPU, and let go of after the save.

    It does nothing for other optimizers.
    """

    def before_train(self, runner: Runner) -> None:
        """Put the collecting in front of the save."""
        optimizer = runner.optim_wrapper.optimizer
        if isinstance(optimizer, ShardedOptimizer):
            self.after_train(runner)
            runner.save_checkpoint = _ConsolidatedSave(runner.save_checkpoint, optimizer)

    def after_train(self, runner: Runner) -> None:
        """Leave the runner as it was."""
        vars(runner).pop("save_checkpoint", None)


class _ConsolidatedSave:
    """Runner.save_checkpoint, with the shares collected before and let go of after it."""

    def __init__(self, save: Callable[..., None], optimizer: ShardedOptimizer) -> None:
        self.save = save
        self.optimizer = optimizer
        self.signature = inspect.signature(save)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        arguments = self.signature.bind(*args, **kwargs).arguments
        if not arguments.get("save_optimizer", True):
            self.save(*args, **kwargs)
            return
        self.optimizer.consolidate_state_dict()
        try:
            self.save(*args, **kwargs)
        finally:
            self.optimizer.forget_shares()
