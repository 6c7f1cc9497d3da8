"""The model itself, whatever wraps it for several processes."""

from __future__ import annotations

from typing import cast

from mmengine.model import is_model_wrapper
from torch import nn


def plain_model(model: nn.Module) -> nn.Module:
    """Take a model out of its wrapper for several processes; one without is returned as it is."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model
