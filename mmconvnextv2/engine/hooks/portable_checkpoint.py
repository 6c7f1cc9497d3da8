"""Checkpoints that load with `torch.load(weights_only=True)` in any process."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class PortableCheckpointHook(Hook):
    """Write the Runner's log history as plain lists, and rebuild it when a run resumes.

    mmengine stores it as HistoryBuffer objects and NumPy values, which a safe load refuses in any
    process that has not allowed these classes.
    """

    # Last among the hooks that edit a checkpoint before it is written.
    priority = "LOWEST"

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace what a safe load would refuse.

        Args:
            runner: the runner of the training process.
            checkpoint: what is about to be written, edited in place.
        """
        hub = checkpoint["message_hub"]
        log_scalars = {name: _to_plain(buffer) for name, buffer in hub["log_scalars"].items()}
        checkpoint["message_hub"] = _without_numpy({**hub, "log_scalars": log_scalars})
        checkpoint["meta"] = _without_numpy(checkpoint["meta"])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Rebuild the log history.

        Args:
            runner: the runner of the training process.
            checkpoint: what was read, edited in place.
        """
        if "message_hub" not in checkpoint:
            return
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = OrderedDict(
            (name, buffer if isinstance(buffer, HistoryBuffer) else _from_plain(buffer))
            for name, buffer in hub["log_scalars"].items()
        )


def _to_plain(buffer: HistoryBuffer) -> dict[str, Any]:
    values, counts = buffer.data
    return dict(values=values.tolist(), counts=counts.tolist(), max_length=int(buffer.max_length))


def _from_plain(plain: dict[str, Any]) -> HistoryBuffer:
    return HistoryBuffer(plain["values"], plain["counts"], plain["max_length"])


def _without_numpy(value: Any) -> Any:
    """Turn NumPy scalars and arrays, at any depth, into Python numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _without_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_numpy(item) for item in value)
    return value
