"""Shares of an optimizer's state against the whole optimizer, in each of three processes in turn.

torch's "fake" backend lets one process be any rank: its collectives do nothing, so what a rank does
by itself is seen. tests/test_rank_faults.py trains in real processes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.dist import master_only
from mmengine.registry import HOOKS, OPTIMIZERS
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmconvnextv2.analysis.plan import state_bytes
from mmconvnextv2.engine import ShardedOptimizer

pytestmark = pytest.mark.unit

PROCESSES = 3
SETTINGS = dict(lr=0.1, betas=(0.9, 0.95), weight_decay=0.05)
STEPS = 3


@contextmanager
def process(rank: int, processes: int = PROCESSES) -> Iterator[None]:
    """Be one of several processes."""
    if processes == 1:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    else:
        distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 2))


def groups(module: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.ndim > 1]
    return [
        dict(params=matrices),
        dict(params=[p for p in module.parameters() if p.ndim == 1], weight_decay=0.0),
    ]


def sharded(module: nn.Module, **settings: Any) -> ShardedOptimizer:
    config = dict(type="ShardedOptimizer", optimizer_type="AdamW", **SETTINGS)
    return OPTIMIZERS.build({**config, **settings, "params": groups(module)})


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Gradients depend on the step alone; the rate is changed from outside, as schedules do."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        optimizer.step()


@pytest.fixture(params=[dict(), dict(fused=True)], ids=["plain", "fused"])
def whole(request: pytest.FixtureRequest) -> SimpleNamespace:
    """AdamW of torch after some steps, and after as many again."""
    module = network()
    optimizer = torch.optim.AdamW(groups(module), **SETTINGS, **request.param)
    train(module, optimizer, range(STEPS))
    middle = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(module, optimizer, range(STEPS, 2 * STEPS))
    return SimpleNamespace(
        weights=middle[0],
        state=middle[1],
        end=list(module.parameters()),
        settings=request.param,
        bytes=state_bytes(optimizer),
    )


def test_a_plain_optimizer_s_state_goes_on_in_shares(whole: SimpleNamespace) -> None:
    """Each process moves its own parameters as the whole optimizer does, and no others."""
    moved = []
    sizes = 0
    for rank in range(PROCESSES):
        module = network()
        module.load_state_dict(whole.weights)
        before = [p.detach().clone() for p in module.parameters()]
        with process(rank):
            optimizer = sharded(module, **whole.settings)
            optimizer.load_state_dict(copy.deepcopy(whole.state))
            sizes += state_bytes(optimizer)
            assert [g["lr"] for g in optimizer.param_groups] == [0.1 / STEPS] * 2
            train(module, optimizer, range(STEPS, 2 * STEPS))
            own = chain.from_iterable(group["params"] for group in optimizer.optim.param_groups)
            share = {id(parameter) for parameter in own}
        for i, (parameter, start) in enumerate(zip(module.parameters(), before, strict=True)):
            if id(parameter) in share:
                moved.append(i)
                assert torch.equal(parameter, whole.end[i])
            else:
                assert torch.equal(parameter, start)
    assert sorted(moved) == list(range(len(whole.end))), "every parameter in one share"
    assert sizes == whole.bytes


def test_what_is_saved_is_the_plain_optimizer_s(whole: SimpleNamespace) -> None:
    """One process that holds every share: state, groups and numbering as torch's AdamW has them."""
    module = network()
    with process(0, processes=1):
        optimizer = ShardedOptimizer(
            groups(module), torch.optim.AdamW, **SETTINGS, **whole.settings
        )
        train(module, optimizer, range(STEPS))
        optimizer.consolidate_state_dict()
        saved = optimizer.state_dict()
    assert list(saved["state"]) == list(range(len(whole.end)))
    for index, entries in whole.state["state"].items():
        for name, value in entries.items():
            assert torch.equal(saved["state"][index][name], value), (index, name)
    assert [g["params"] for g in saved["param_groups"]] == [
        g["params"] for g in whole.state["param_groups"]
    ]
    plain = torch.optim.AdamW(groups(module), **SETTINGS, **whole.settings)
    plain.load_state_dict(saved)
    train(module, plain, range(STEPS, 2 * STEPS))
    for parameter, expected in zip(module.parameters(), whole.end, strict=True):
        assert torch.equal(parameter, expected)


class Saves:
    """Of a Runner, what the hook touches; like it, it saves in the first process alone."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optim_wrapper = SimpleNamespace(optimizer=optimizer)
        self.saved: list[dict[str, Any]] = []

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, save_optimizer: bool = True) -> None:
        if filename == "full disk":
            raise OSError("no space left")
        state = self.optim_wrapper.optimizer.state_dict() if save_optimizer else {}
        self.saved.append(copy.deepcopy(state))  # a file is a copy as well


def test_the_hook_collects_before_a_save_and_lets_go_after_it() -> None:
    module = network()
    hook = HOOKS.build(dict(type="ConsolidateOptimizerHook"))
    with process(0, processes=1):
        optimizer = ShardedOptimizer(groups(module), torch.optim.AdamW, **SETTINGS)
        runner = Saves(optimizer)
        train(module, optimizer, range(1))
        with pytest.raises(RuntimeError, match="not been consolidated"):
            runner.save_checkpoint("", "a.pth")
        hook.before_train(runner)
        hook.before_train(runner)  # a second training of the same runner
        for step in (1, 2):
            train(module, optimizer, range(step, step + 1))
            runner.save_checkpoint("", "a.pth")
        runner.save_checkpoint("", "best.pth", save_optimizer=False)
        with pytest.raises(OSError, match="no space"):
            runner.save_checkpoint("", "full disk")
        with pytest.raises(RuntimeError, match="not been consolidated"):
            optimizer.state_dict()
        hook.after_train(runner)
        with pytest.raises(RuntimeError, match="not been consolidated"):
            runner.save_checkpoint("", "a.pth")
    assert [saved["state"][0]["step"].item() for saved in runner.saved[:2]] == [2.0, 3.0]
    assert runner.saved[2:] == [{}]


def test_the_hook_leaves_other_optimizers_alone() -> None:
    runner = Saves(torch.optim.SGD(network().parameters(), lr=0.1))
    HOOKS.build(dict(type="ConsolidateOptimizerHook")).before_train(runner)
    assert "save_checkpoint" not in vars(runner)


def test_one_process_has_the_plain_optimizer() -> None:
    assert type(sharded(network())) is torch.optim.AdamW


@pytest.mark.parametrize("name", ["Adamw", "lr_scheduler", "ShardedOptimizer"])
def test_an_unknown_optimizer_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"torch.optim, such as AdamW, got '{name}'"):
        sharded(network(), optimizer_type=name)


def test_the_state_of_another_network_is_refused(whole: SimpleNamespace) -> None:
    with process(1):
        optimizer = sharded(nn.Linear(5, 7), **whole.settings)
        with pytest.raises(ValueError, match=r"groups of \[3, 5\] parameters, and this one of"):
            optimizer.load_state_dict(whole.state)
