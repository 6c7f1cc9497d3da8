"""Gradients of an unfinished step of the optimizer, kept across a resume."""

from __future__ import annotations

from typing import Any

from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmconvnextv2.engine.plain_model import plain_model

_KEY = "accumulated_gradients"


@HOOKS.register_module()
class AccumulatedGradientsHook(Hook):
    """Write gradients that no step has used yet into the checkpoint, and put them back.

    Where ``optim_wrapper.accumulative_counts`` does not divide the iterations of an epoch, the
    end of an epoch falls between two steps of the optimizer, and mmengine drops the gradients of
    the batches since the last one. At the end of an epoch several processes take the mean of
    theirs, since rank 0 alone writes. A checkpoint within an epoch should be written behind a
    step; written elsewhere, it is complete for one process only.
    """

    # Before CheckpointHook.
    priority = "LOW"

    def __init__(self) -> None:
        self._loaded: dict[str, Tensor] | None = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Let all processes have the same gradients, whose mean the next step is to use."""
        if not _between_steps(runner):
            return
        for parameter in plain_model(runner.model).parameters():
            if parameter.grad is not None:
                all_reduce(parameter.grad, "mean")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the gradients to a checkpoint that can be resumed."""
        if "optimizer" in checkpoint and _between_steps(runner):
            checkpoint[_KEY] = {
                name: parameter.grad.cpu()
                for name, parameter in plain_model(runner.model).named_parameters()
                if parameter.grad is not None
            }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep them until it is known whether this is a resume."""
        self._loaded = checkpoint.get(_KEY)

    def before_train(self, runner: Runner) -> None:
        """Put them back where a run resumes."""
        if self._loaded is None or runner.iter == 0:
            return
        for name, parameter in plain_model(runner.model).named_parameters():
            if name in self._loaded:
                parameter.grad = self._loaded[name].to(parameter)
        runner.logger.info("no gradients are lost: the checkpoint has those of the unfinished step")
        self._loaded = None


def _between_steps(runner: Runner) -> bool:
    wrapper = runner.optim_wrapper
    return not isinstance(wrapper, OptimWrapperDict) and not wrapper.should_update()
