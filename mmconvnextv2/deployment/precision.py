"""Half precision for deployment, with the norms left in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmconvnextv2.deployment.modules import Deployable
from mmconvnextv2.nn import GRN

FLOAT32_MODULES = (GRN, nn.LayerNorm, _BatchNorm)
"""GRN's norm is a sum of squares over all positions: beyond 65504 in float16 as soon as features
reach a few dozen. LayerNorm and BatchNorm divide by small variances."""


def use_float16(module: Deployable) -> Deployable:
    """A copy that computes in float16, apart from `FLOAT32_MODULES`.

    Images and outputs stay float32, and so does the normalisation of the images.

    Args:
        module: a float32 module, which stays as it is.
    """
    half = copy.deepcopy(module)
    half.compute_dtype = torch.float16
    half.network.half()
    for part in half.network.modules():
        if isinstance(part, FLOAT32_MODULES):
            part.float()
            part.register_forward_pre_hook(_widen)
            part.register_forward_hook(_narrow)
    return half


def _widen(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in args)


def _narrow(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.half()
