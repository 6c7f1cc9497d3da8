"""Hook that stops training before a step that is not finite is taken, and says where it arose."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from mmconvnextv2.engine.nonfinite import Call, read_random_state, total_loss
from mmconvnextv2.engine.nonfinite_report import NonFiniteReport, Step
from mmconvnextv2.engine.plain_model import plain_model

MAX_DROPPED = 20
"""Steps in a row that a loss scaler may drop. It starts at 2**16 and halves, so 17 bring it to 0.5:
from there on it is the gradients themselves that are not finite."""

_SKIPS = "nonfinite_skips"


class NonFiniteError(RuntimeError):
    """The loss or a gradient is not finite; the message names the step, the place, the report."""


@HOOKS.register_module()
class FiniteHook(Hook):
    """Look at the loss and all gradients just before the optimizer would use them.

    It costs one synchronisation with the device a step, and one tiny message where there are
    several processes, so that all of them stop at the same step. Batches of an accumulated step
    are looked at one by one. With a loss scaler (fp16) the gradients are the scaler's to judge:
    the steps it drops count as failures only after `MAX_DROPPED` of them in a row.

    A failure leaves two files in ``work_dir/nonfinite``: ``iter_<step>.json`` with step, epoch,
    seed, and for every process its loss, its image files and the origin, and ``iter_<step>.pt``
    with each process' random state at the start of the forward pass, a list for
    `mmconvnextv2.engine.nonfinite.set_random_state`. The origin is found by repeating the forward
    pass with the same random draws: the first module whose output is not finite, else the first
    parameter whose gradient is not. Parameters and optimizer state stay as they were before the
    step. Then `NonFiniteError` is raised, in every process.

    Args:
        max_skips: how many such steps to leave out, over the whole run and its resumes, before
            training stops. A step is left out by dropping its gradients, all of an accumulated
            step; statistics of normalisation layers go back to what they were. Each is logged.

    Raises:
        ValueError: `max_skips` is negative.
        TypeError: the run has several optimizers.
    """

    # The random state is read at the forward pass; the check comes before averaging and saving.
    priority = "HIGH"

    def __init__(self, max_skips: int = 0) -> None:
        if max_skips < 0:
            raise ValueError(f"FiniteHook: max_skips must be at least 0, got {max_skips}")
        self.max_skips = max_skips
        self._handles: list[Any] = []
        self._step: Step | None = None
        self._dropped = 0
        self._drop_update = False

    def before_train(self, runner: Runner) -> None:
        """Begin to watch the model's losses and the optimizer's steps."""
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            raise TypeError(
                "FiniteHook watches one optimizer, and this run has a "
                f"{type(runner.optim_wrapper).__name__}: remove the hook from custom_hooks"
            )
        self._forget()
        model = plain_model(runner.model)
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
            runner.optim_wrapper.optimizer.register_step_pre_hook(
                partial(self._before_step, runner)
            ),
        ]

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Keep the batch until its step is known to be finite."""
        self._step = Step(data_batch)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Look at a batch that has not led to a step: accumulated, or dropped by a loss scaler."""
        if self._step is not None and not self._step.looked:
            due = runner.optim_wrapper.should_update()
            self._look(runner, stepping=False, dropped=due and _has_scaler(runner))
        self._step = None

    def after_train(self, runner: Runner) -> None:
        """Stop watching."""
        self._forget()

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._step = None
        self._dropped = 0
        self._drop_update = False

    def _before_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._step is None or kwargs.get("mode") != "loss":
            return
        self._step.call = Call(args, kwargs, read_random_state())
        if self.max_skips:
            self._step.buffers = [buffer.clone() for buffer in model.buffers()]

    def _after_forward(
        self, model: nn.Module, args: Any, kwargs: dict[str, Any], losses: Any
    ) -> None:
        if self._step is not None and kwargs.get("mode") == "loss":
            self._step.loss = total_loss(losses).detach()

    def _before_step(self, runner: Runner, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._step is None or self._step.looked:
            return
        # A scaler leaves it to a fused optimizer to drop the step, and says so in this attribute.
        self._look(runner, stepping=True, dropped=getattr(optimizer, "found_inf", None))

    def _look(self, runner: Runner, *, stepping: bool, dropped: Tensor | bool | None) -> None:
        """Read loss and gradients, once a batch, and act on what is not finite."""
        assert self._step is not None
        self._step.looked = True
        gradients = [] if _has_scaler(runner) else _gradients(runner.optim_wrapper.optimizer)
        bad_loss, bad_gradient, was_dropped = _flags(self._step.loss, gradients, dropped)
        if was_dropped:
            self._dropped += 1
        elif stepping:
            self._dropped = 0
        if bad_loss:
            self._fail(runner, "the loss is not finite", stepping)
        elif bad_gradient:
            self._fail(runner, "a gradient is not finite", stepping)
        elif self._dropped >= MAX_DROPPED:
            self._dropped = 0
            reason = f"gradients overflow at any loss scale: {MAX_DROPPED} steps dropped in a row"
            self._fail(runner, reason, stepping)
        if stepping and self._drop_update:
            self._drop_update = False
            runner.optim_wrapper.optimizer.zero_grad(set_to_none=True)

    def _fail(self, runner: Runner, reason: str, stepping: bool) -> None:
        """Report, then leave the step out or stop."""
        assert self._step is not None
        # From here on the hooks at the model see no step, so that it can be repeated.
        step, self._step = self._step, None
        # Nobody needs these gradients any more, and the repetition needs memory for its own.
        runner.optim_wrapper.optimizer.zero_grad(set_to_none=True)
        report = NonFiniteReport(runner, step, reason)
        report.write()
        report.locate(runner)
        report.write()
        skips = runner.message_hub.get_info(_SKIPS, 0) + 1
        if skips > self.max_skips:
            self._forget()
            raise NonFiniteError(
                f"{report.sentence}; the step was not taken and no parameter has changed, its "
                f"images and random state are in {report.path}"
            )
        runner.message_hub.update_info(_SKIPS, skips)
        self._drop_update = not stepping and not runner.optim_wrapper.should_update()
        if step.buffers:
            for buffer, before in zip(
                plain_model(runner.model).buffers(), step.buffers, strict=True
            ):
                buffer.copy_(before)
        runner.logger.warning(
            f"left out, {skips} of at most {self.max_skips}: {report.sentence}; see {report.path}"
        )


def _flags(
    loss: Tensor | None, gradients: list[Tensor], dropped: Tensor | bool | None
) -> tuple[bool, bool, bool]:
    """Whether the loss and a gradient are not finite, and whether the step is dropped, anywhere.

    One synchronisation with the device, and one message where there are several processes.
    """
    reference = loss if loss is not None else next(iter(gradients), torch.zeros(()))
    zero = torch.zeros((), device=reference.device)
    # The largest absolute value, unlike the usual norm, cannot itself overflow.
    norms = torch._foreach_norm(gradients, math.inf) if gradients else []
    largest = torch.stack([zero, *(norm.to(zero) for norm in norms)])
    flags = torch.stack(
        [
            (zero if loss is None else loss).isfinite().logical_not().any(),
            largest.isfinite().logical_not().any(),
            torch.as_tensor(False if dropped is None else dropped, device=zero.device).bool().any(),
        ]
    ).int()
    if get_world_size() > 1:
        all_reduce(flags, op="max")
    bad_loss, bad_gradient, was_dropped = flags.tolist()
    return bool(bad_loss), bool(bad_gradient), bool(was_dropped)


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]


def _has_scaler(runner: Runner) -> bool:
    return getattr(runner.optim_wrapper, "loss_scaler", None) is not None
