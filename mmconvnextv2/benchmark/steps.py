"""What is timed: one training step, or one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Precisions by name. In bf16 weights stay float32 and autocast chooses, as in training."""


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Run what is inside in the given precision."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


class TrainingStep:
    """One call: forward, backward and, with an optimizer, its step.

    A forward pass that returns a scalar is a loss. Features go backward from one fixed random
    gradient, drawn in the first call: the gradient of a sum would be a single expanded number.

    Args:
        module: what is trained.
        forward: computes a loss, or features.
        device: where it runs.
        dtype: precision of the forward pass.
        optimizer: what updates the parameters; None for forward and backward alone.
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[], Tensor],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        optimizer: Optimizer | None = None,
    ) -> None:
        self.module = module
        self.forward = forward
        self.device = device
        self.dtype = dtype
        self.optimizer = optimizer
        self.release_gradients = True
        self._gradient: Tensor | None = None

    def __call__(self) -> None:
        """Run one step."""
        self.module.zero_grad(set_to_none=self.release_gradients)
        output = self.output()
        if output.dim() > 0 and self._gradient is None:
            self._gradient = torch.randn_like(output)
        output.backward(self._gradient)
        if self.optimizer is not None:
            self.optimizer.step()

    def output(self) -> Tensor:
        """The loss or features of one forward pass."""
        with autocast(self.device, self.dtype):
            return self.forward()


class ForwardPass(TrainingStep):
    """One call: the forward pass without a graph, as in inference."""

    def __call__(self) -> None:
        """Run it."""
        self.output()

    def output(self) -> Tensor:
        """The features."""
        with torch.no_grad():
            return super().output()


def adamw(module: nn.Module) -> AdamW:
    """The optimizer of masked pre-training (paper, table 8), in one group, the same for all.

    Fused, as in our recipe: PyTorch's default takes several times as long.
    """
    return AdamW(module.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
