"""bf16 autocast on the CPU: what is computed in bf16, and what stays in float32."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from mmconvnextv2.nn import FCMAE, random_masking

pytestmark = pytest.mark.unit


def build_wrapper(model: nn.Module, **settings: object) -> object:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return OPTIM_WRAPPERS.build(
        dict(type="AutocastOptimWrapper", **settings), default_args=dict(optimizer=optimizer)
    )


def test_forward_in_bfloat16_parameters_in_float32(tiny_arch: dict) -> None:
    model = FCMAE.build(tiny_arch, decoder_channels=16)
    wrapper = build_wrapper(model)
    seen = {}
    model.neck.prediction.register_forward_hook(
        lambda module, inputs, output: seen.update(prediction=output.dtype)
    )
    x, mask = torch.randn(2, 3, 64, 64), random_masking(2, (2, 2), 0.5)
    with wrapper.optim_context(model):
        loss = model(x, mask=mask, mode="loss")["loss"]
    assert not torch.is_autocast_enabled("cpu")
    assert seen["prediction"] == torch.bfloat16
    assert loss.dtype == torch.float32
    wrapper.update_params(loss)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_accumulation_equals_one_large_batch() -> None:
    """Two accumulated batches give the step of their union, as with mmengine's own wrapper."""
    torch.manual_seed(0)
    one, two = nn.Linear(4, 1), nn.Linear(4, 1)
    two.load_state_dict(one.state_dict())
    x = torch.randn(8, 4)
    whole, halves = build_wrapper(one), build_wrapper(two, accumulative_counts=2)
    halves.initialize_count_status(two, 0, 4)
    with whole.optim_context(one):
        whole.update_params(one(x).float().square().mean())
    for half in x.chunk(2):
        with halves.optim_context(two):
            halves.update_params(two(half).float().square().mean())
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-2, atol=1e-3)
