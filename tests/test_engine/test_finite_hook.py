"""`FiniteHook` in real runs: stops before the step, names the place, leaves out what it may."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from toy_training import NumberedVectors, NumberModel, Trace, copy_state, log_of, make_runner

from mmconvnextv2.datasets.stateless import SeededIndex, StatelessDataset
from mmconvnextv2.engine.hooks import FiniteHook, NonFiniteError
from mmconvnextv2.engine.hooks.finite import MAX_DROPPED
from mmconvnextv2.engine.nonfinite import set_random_state
from mmconvnextv2.seeding import Stream, derive_seed, seed_everything

pytestmark = pytest.mark.integration

BAD = 9
STEP = 3
"""Image 9 is in the third batch of four, in order."""

PLACES = dict(output="'spot' (Spot)", gradient="'first.")


def settings(kind: str = "output", **changes: Any) -> dict[str, Any]:
    return dict(bad=[BAD], shuffle=False, model=dict(kind=kind), **changes)


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.fault(
    5, "an output or a gradient that is not finite", "stops before the step; batch and place named"
)
@pytest.mark.parametrize("kind", ["output", "gradient"])
def test_training_stops_before_the_step(tmp_path: Path, kind: str) -> None:
    plain = Trace()
    make_runner(tmp_path / "plain", plain, epochs=1, **settings(kind)).train()
    assert plain.weights[STEP]["first.weight"].isnan().any(), "what is to be prevented"

    trace = Trace()
    runner = make_runner(tmp_path / "watched", trace, FiniteHook(), **settings(kind))
    with pytest.raises(NonFiniteError) as error:
        runner.train()
    message = str(error.value)
    assert f"not finite in step {STEP} (epoch 1)" in message
    assert PLACES[kind] in message
    parameters = {
        name: plain.weights[STEP - 1][name] for name, _ in runner.model.named_parameters()
    }
    assert_equal(copy_state(runner.model), parameters)
    assert all(parameter.grad is None for parameter in runner.model.parameters())

    path = tmp_path / "watched" / "nonfinite" / f"iter_{STEP}.json"
    assert str(path) in message
    report = json.loads(path.read_text())
    assert (report["step"], report["epoch"], report["seed"]) == (STEP, 1, 0)
    (rank,) = report["ranks"]
    assert rank["images"] == trace.images[STEP] == [f"{i}.png" for i in range(8, 12)]
    assert rank["input_is_finite"] is True
    assert PLACES[kind] in rank["origin"]
    assert (rank["loss"] == "nan") == (kind == "output")
    (state,) = torch.load(path.with_suffix(".pt"), weights_only=True)
    set_random_state(state)
    # The step itself and its repetition drew the same, which the file gives once more.
    assert torch.rand(()).item() == runner.model.draws[STEP - 1] == runner.model.draws[STEP]


def test_a_finite_run_is_what_it_is_without_the_hook(tmp_path: Path) -> None:
    traces = Trace(), Trace()
    make_runner(tmp_path / "plain", traces[0]).train()
    runner = make_runner(tmp_path / "watched", traces[1], FiniteHook(max_skips=1))
    runner.train()
    assert traces[0].losses == traces[1].losses
    assert_equal(traces[1].weights[8], traces[0].weights[8])
    assert not (tmp_path / "watched" / "nonfinite").exists()
    assert not runner.model._forward_hooks and not runner.model._forward_pre_hooks
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("kind", ["output", "gradient"])
def test_the_batch_of_an_accumulated_step_is_named(tmp_path: Path, kind: str) -> None:
    """Batch 3 is the first of two; without a look at each, batch 4 would be blamed."""
    trace = Trace()
    wrapper = dict(optimizer=dict(type="SGD", lr=0.05), accumulative_counts=2)
    runner = make_runner(tmp_path, trace, FiniteHook(), **settings(kind, optim_wrapper=wrapper))
    with pytest.raises(NonFiniteError, match=f"in step {STEP} "):
        runner.train()
    report = json.loads((tmp_path / "nonfinite" / f"iter_{STEP}.json").read_text())
    assert report["ranks"][0]["images"] == [f"{i}.png" for i in range(8, 12)]
    parameters = {name for name, _ in runner.model.named_parameters()}
    assert_equal(
        copy_state(runner.model), {name: trace.weights[STEP - 1][name] for name in parameters}
    )


def train_without(leave_out: set[int], accumulation: int, kind: str) -> NumberModel:
    """Plain PyTorch: 8 batches of 2 epochs; steps with a batch that is left out are not taken."""
    model = NumberModel(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for first in range(0, 8, accumulation):
        group = range(first, first + accumulation)
        for i in group:
            if i in leave_out:
                continue
            epoch, batch = divmod(i, 4)
            dataset = StatelessDataset(NumberedVectors(16, bad=[BAD]))
            indices = range(4 * batch, 4 * batch + 4)
            inputs = [dataset[SeededIndex(k, epoch, 0)]["inputs"] for k in indices]
            seed_everything(derive_seed(0, Stream.STEP, 0, i))
            (model(inputs, mode="loss")["loss"] / accumulation).backward()
        if not leave_out & set(group):
            optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("kind", ["output", "gradient"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_is_left_out_leaves_no_trace(tmp_path: Path, kind: str, accumulation: int) -> None:
    """Weights, momentum, and the statistics of BatchNorm, which the bad batch would make NaN."""
    optimizer = dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=0.01)
    runner = make_runner(
        tmp_path,
        FiniteHook(max_skips=2),
        **settings(kind, optim_wrapper=dict(optimizer=optimizer, accumulative_counts=accumulation)),
    )
    runner.train()
    expected = train_without({2, 6}, accumulation, kind).state_dict()
    assert_equal(copy_state(runner.model), expected)
    log = log_of(tmp_path)
    assert "left out, 1 of at most 2: " in log and "left out, 2 of at most 2: " in log
    assert logging.getLevelName(logging.WARNING) in log
    assert sorted(path.name for path in (tmp_path / "nonfinite").glob("*.json")) == [
        "iter_3.json",
        "iter_7.json",
    ]


def test_the_limit_of_what_is_left_out_holds_over_a_resume(tmp_path: Path) -> None:
    trace = Trace()
    runner = make_runner(tmp_path, trace, FiniteHook(max_skips=1), **settings(epochs=1))
    runner.train()
    assert len(trace.losses) == 4 and math.isnan(trace.losses[STEP])
    again = make_runner(
        tmp_path,
        FiniteHook(max_skips=1),
        **settings(epochs=2, resume=True, load_from=str(tmp_path / "epoch_1.pth")),
    )
    with pytest.raises(NonFiniteError, match="in step 7 "):
        again.train()


@OPTIM_WRAPPERS.register_module(force=True)
class ScalingWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper without its wish for a GPU: loss scaling alone, in float32."""

    def __init__(self, init_scale: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def scaling(fused: bool, init_scale: float = 65536.0) -> dict[str, Any]:
    optimizer = dict(type="SGD", lr=0.05, fused=fused)
    return dict(type="ScalingWrapper", init_scale=init_scale, optimizer=optimizer)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_may_look_for_its_scale(tmp_path: Path, fused: bool) -> None:
    trace = Trace()
    hook = FiniteHook()
    runner = make_runner(tmp_path, trace, hook, optim_wrapper=scaling(fused, 2.0**127), epochs=3)
    start = copy_state(runner.model)
    runner.train()
    assert torch.equal(trace.weights[1]["last.weight"], start["last.weight"]), "an overflow"
    assert not torch.equal(trace.weights[12]["last.weight"], start["last.weight"])
    assert hook._dropped == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_that_is_not_finite_is_no_matter_of_scale(tmp_path: Path, fused: bool) -> None:
    runner = make_runner(tmp_path, FiniteHook(), **settings(optim_wrapper=scaling(fused)))
    with pytest.raises(NonFiniteError, match=f"the loss is not finite in step {STEP} "):
        runner.train()


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_that_overflow_at_any_scale_stop_training(tmp_path: Path, fused: bool) -> None:
    runner = make_runner(
        tmp_path,
        FiniteHook(),
        bad=range(16),
        model=dict(kind="gradient"),
        optim_wrapper=scaling(fused),
        epochs=10,
    )
    with pytest.raises(NonFiniteError, match="any loss scale") as error:
        runner.train()
    assert f"in step {MAX_DROPPED} " in str(error.value)
    assert "'first." in str(error.value)


def test_an_infinite_loss_with_finite_gradients_is_seen(tmp_path: Path) -> None:
    class Constant(NumberModel):
        def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
            return dict(loss=super().forward(inputs, data_samples, mode)["loss"] + math.inf)

    runner = make_runner(tmp_path, FiniteHook())
    runner.model = Constant()
    with pytest.raises(NonFiniteError, match="the loss is not finite in step 1 .*the whole model"):
        runner.train()


def test_large_gradients_are_no_infinite_ones(tmp_path: Path) -> None:
    """Their squares overflow, so that the usual norm of them is infinite."""

    class Steep(NumberModel):
        def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
            return dict(loss=super().forward(inputs, data_samples, mode)["loss"] * 1e25)

    wrapper = dict(optimizer=dict(type="SGD", lr=1e-27))
    runner = make_runner(tmp_path, FiniteHook(), optim_wrapper=wrapper)
    runner.model = Steep()
    runner.train()
    assert runner.iter == 8


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="max_skips must be at least 0, got -1"):
        FiniteHook(max_skips=-1)
