"""Mixed precision in bfloat16 on every device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Run the forward pass under `torch.autocast` in bfloat16, on a CPU or a GPU.

    bfloat16 has the range of float32, so the loss needs no scaling and parameters, gradients and
    optimizer state stay in float32. mmengine's own AmpOptimWrapper needs a GPU and takes float16
    by default; use it where a card has no bfloat16.

    Args:
        **kwargs: arguments of mmengine's OptimWrapper: ``optimizer``, ``accumulative_counts``,
            ``clip_grad``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enclose the forward pass of one step in autocast.

        Args:
            model: the model, wrapped for distributed training or not.
        """
        device_type = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device_type, dtype=torch.bfloat16):
            yield
