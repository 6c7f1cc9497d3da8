"""The computing time of an iteration is what the clock says between its two ends."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub

from mmconvnextv2.engine.hooks import ComputingTimeHook
from mmconvnextv2.engine.hooks.computing_time import COMPUTING_TIME

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("gpu", [False, True])
def test_records_each_iteration_alone(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    clock = iter([1.0, 1.5, 7.0, 9.0])  # what passes between two iterations does not count
    waited: list[None] = []
    monkeypatch.setattr(time, "perf_counter" if gpu else "process_time", lambda: next(clock))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(None))
    runner = SimpleNamespace(message_hub=MessageHub("computing time"))
    hook = ComputingTimeHook()
    for index in range(2):
        hook.before_train_iter(runner, index)
        hook.after_train_iter(runner, index)
    values, counts = runner.message_hub.log_scalars[COMPUTING_TIME].data
    assert values.tolist() == [0.5, 2.0] and counts.tolist() == [1, 1]
    assert len(waited) == (4 if gpu else 0), "the GPU's work counts once it is done"
