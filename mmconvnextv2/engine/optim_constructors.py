"""Parameter groups: what weight decay applies to."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmconvnextv2.engine.plain_model import plain_model
from mmconvnextv2.nn import GRN

NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase, GRN)
"""Modules whose parameters are never decayed."""


def is_decayed(module: nn.Module, name: str) -> bool:
    """Whether weight decay applies to a parameter.

    Biases, norms, GRN, LayerScale and the mask token are exempt. The official pre-training decays
    GRN and the token; its authors advised against that after the paper.

    Args:
        module: the module that owns the parameter.
        name: the parameter's name inside it, such as ``weight``.
    """
    return not (name in ("bias", "gamma", "mask_token") or isinstance(module, NORMS))


def build_optim_wrapper(
    optim_wrapper_cfg: dict[str, Any], optimizer_cfg: dict[str, Any], groups: list[dict[str, Any]]
) -> OptimWrapper:
    """Build an optimizer over parameter groups, and its wrapper.

    Args:
        optim_wrapper_cfg: config of the wrapper, without its ``optimizer``.
        optimizer_cfg: config of the optimizer.
        groups: its parameter groups.
    """
    optimizer = OPTIMIZERS.build({**optimizer_cfg, "params": groups})
    return OPTIM_WRAPPERS.build(
        {"type": "OptimWrapper", **optim_wrapper_cfg}, default_args=dict(optimizer=optimizer)
    )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class WeightDecayOptimWrapperConstructor:
    """Build an optimizer with two parameter groups: decayed and not decayed.

    mmengine's own constructor makes a group of each parameter, which slows the optimizer's fused
    loops down and fills the log.

    Args:
        optim_wrapper_cfg: config of the wrapper, with its ``optimizer``.
        paramwise_cfg: not supported; the groups follow from `is_decayed` alone.

    Raises:
        ValueError: a `paramwise_cfg` is given.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        if paramwise_cfg:
            raise ValueError(
                f"WeightDecayOptimWrapperConstructor takes no paramwise_cfg, got {paramwise_cfg}; "
                f"leave it out or use mmengine's DefaultOptimWrapperConstructor"
            )
        self.optim_wrapper_cfg = copy.deepcopy(optim_wrapper_cfg)
        self.optimizer_cfg = self.optim_wrapper_cfg.pop("optimizer")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of a model, wrapped for distributed training or not."""
        model = plain_model(model)
        decayed: list[nn.Parameter] = []
        exempt: list[nn.Parameter] = []
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    (decayed if is_decayed(module, name) else exempt).append(parameter)
        groups: list[dict[str, Any]] = [dict(params=decayed), dict(params=exempt, weight_decay=0.0)]
        print_log(
            f"weight decay {self.optimizer_cfg.get('weight_decay', 'default')} on {len(decayed)} "
            f"parameters, none on {len(exempt)} (biases, norms, GRN, mask token)",
            "current",
        )
        return build_optim_wrapper(self.optim_wrapper_cfg, self.optimizer_cfg, groups)
