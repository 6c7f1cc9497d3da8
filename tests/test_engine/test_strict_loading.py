"""A whole model loads whole, or not at all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from torch import nn

import mmconvnextv2.engine  # noqa: F401
from mmconvnextv2.checkpoint import StateDictMismatch

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("wrap", [False, True])
def test_only_the_models_own_tensors_pass(wrap):
    model = nn.Linear(3, 2)
    runner = SimpleNamespace(model=nn.DataParallel(model) if wrap else model)
    hook = HOOKS.build(dict(type="StrictLoadingHook"))
    state = nn.Linear(3, 2).state_dict()
    hook.after_load_checkpoint(runner, {"state_dict": state})
    hook.after_load_checkpoint(runner, state)
    for broken, message in (
        ({"weight": state["weight"]}, "1 missing: bias"),
        ({**state, "extra": torch.zeros(1)}, "1 unexpected: extra"),
        ({**state, "bias": torch.zeros(5)}, "bias: (5,) in the file, (2,) in the model"),
    ):
        with pytest.raises(StateDictMismatch) as caught:
            hook.after_load_checkpoint(runner, {"state_dict": broken})
        assert message in str(caught.value)
