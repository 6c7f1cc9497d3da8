"""Each block is compiled, with static shapes, and no key of the state_dict moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS

import mmconvnextv2.engine  # noqa: F401
from mmconvnextv2.nn import FCMAE, Block, random_masking

pytestmark = pytest.mark.unit


def test_every_block_once(tiny_arch, monkeypatch):
    compiled = []
    original = torch.nn.Module.compile

    def compile_eagerly(module, *args, **kwargs):
        compiled.append((module, kwargs))
        original(module, backend="eager", dynamic=kwargs["dynamic"])

    monkeypatch.setattr(Block, "compile", compile_eagerly)
    model = FCMAE.build(tiny_arch, decoder_channels=16)
    keys = list(model.state_dict())
    x, mask = torch.randn(2, 3, 96, 96), random_masking(2, (3, 3), 0.6)
    expected = model(x, mask=mask, mode="loss")["loss"]
    lines = []
    runner = SimpleNamespace(model=model, logger=SimpleNamespace(info=lines.append))
    HOOKS.build(dict(type="CompileBlocksHook", mode="max-autotune")).before_train(runner)
    assert {id(m) for m, _ in compiled} == {id(m) for m in model.modules() if isinstance(m, Block)}
    assert all(kwargs == dict(mode="max-autotune", dynamic=False) for _, kwargs in compiled)
    assert lines == ["torch.compile: 6 blocks"]
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x, mask=mask, mode="loss")["loss"], expected)
