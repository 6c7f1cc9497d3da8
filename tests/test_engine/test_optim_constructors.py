"""Weight decay touches matrices and kernels, and nothing else."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from mmconvnextv2.engine import WeightDecayOptimWrapperConstructor
from mmconvnextv2.nn import FCMAE

pytestmark = pytest.mark.unit

CONFIG = dict(optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05))


def test_groups(tiny_arch: dict) -> None:
    model = FCMAE.build(tiny_arch, decoder_channels=16)
    model.backbone.stages[0].requires_grad_(False)
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(type="WeightDecayOptimWrapperConstructor", optim_wrapper_cfg=CONFIG)
    )
    wrapper = constructor(model)
    decay = {
        id(parameter): group["weight_decay"]
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(decay) == len(trained)
    assert sum(len(group["params"]) for group in wrapper.optimizer.param_groups) == len(trained)
    for name, parameter in trained.items():
        # Kernels and matrices are the only parameters of more than one dimension.
        assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0), name


def test_decay_moves_only_decayed(tiny_arch: dict) -> None:
    model = FCMAE.build(tiny_arch, decoder_channels=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    wrapper = WeightDecayOptimWrapperConstructor(CONFIG)(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    wrapper.optimizer.step()
    for name, parameter in model.named_parameters():
        expected = 1 - 1e-3 * 0.05 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), msg=name)


def test_paramwise_cfg_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no paramwise_cfg"):
        WeightDecayOptimWrapperConstructor(CONFIG, dict(norm_decay_mult=0.0))
