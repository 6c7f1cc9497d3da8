"""A Runner that computes on the CPU where there is a GPU."""

from __future__ import annotations

from typing import Any

from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn


@RUNNERS.register_module()
class CpuRunner(Runner):
    """mmengine's Runner, which takes a GPU where it finds one, kept to the CPU.

    A config asks for it with ``runner_type="CpuRunner"``. It is for one process.
    """

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Bring the model to the CPU; the data follows it.

        Args:
            model_wrapper_cfg: how to wrap the model; mmengine's argument.
            model: the model.
        """
        return super().wrap_model(model_wrapper_cfg, model).to("cpu")
