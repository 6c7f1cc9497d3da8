"""Random states that are read and set, and the search for the first module or gradient gone bad."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmconvnextv2.engine.nonfinite import (
    Call,
    first_bad_gradient,
    first_bad_output,
    is_finite,
    kept_random_state,
    read_random_state,
    set_random_state,
    total_loss,
)

pytestmark = pytest.mark.unit


def draw() -> tuple[float, ...]:
    # A Gaussian of NumPy is one of a pair: the second one is part of the state too.
    return (random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(()).item())


def test_a_state_survives_a_file_and_gives_the_same_draws() -> None:
    draw()
    file = io.BytesIO()
    torch.save(read_random_state(), file)
    expected = [draw() for _ in range(700)]  # more than the 624 words of a state
    set_random_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert [draw() for _ in range(700)] == expected


def test_what_is_drawn_inside_changes_nothing_outside() -> None:
    state = read_random_state()
    expected = draw()
    set_random_state(state)
    with kept_random_state():
        draw()
    assert draw() == expected


def test_a_call_is_repeated_with_its_draws() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8))
    x_NC = torch.randn(4, 8)
    call = Call((x_NC,), {}, read_random_state())
    expected = model(x_NC)
    assert not torch.equal(model(x_NC), expected), "dropout draws anew"
    assert torch.equal(call.repeat(model), expected)
    assert call.input_is_finite
    assert not Call((), dict(x=[x_NC / 0]), {}).input_is_finite


def test_finite_in_containers() -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert is_finite(dict(a=[good, (good,)], b="text", c=None, d=torch.ones(2, dtype=torch.long)))
    assert not is_finite(dict(a=[good, (bad,)]))
    assert not is_finite(torch.tensor([complex(0, float("inf"))]))


def test_the_total_is_what_mmengine_sums() -> None:
    losses = dict(
        loss_a=torch.tensor([1.0, 2.0]),
        loss_list=[torch.tensor(3.0), torch.tensor([4.0, 8.0])],
        accuracy=torch.tensor(float("nan")),
    )
    expected, _ = BaseModel.parse_losses(None, losses)
    assert total_loss(losses) == expected == 10.5


class Divide(nn.Module):
    """Divides by a number, 0 for a bad one."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x_NC: Tensor) -> Tensor:
        return x_NC / self.by


class Two(nn.Module):
    """Two branches in an order that is not that of their names, and an operation of its own."""

    def __init__(self, early: float = 1.0, late: float = 1.0, own: float = 1.0) -> None:
        super().__init__()
        self.late = nn.Sequential(nn.Linear(3, 3), Divide(late))
        self.early = nn.Sequential(nn.Linear(3, 3), Divide(early))
        self.own = own

    def forward(self, x_NC: Tensor) -> Tensor:
        return self.late(self.early(x_NC)) / self.own


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (dict(early=0.0), "'0.early.1' (Divide)"),
        (dict(late=0.0), "'0.late.1' (Divide)"),
        (dict(early=0.0, late=0.0), "'0.early.1' (Divide)"),
        (dict(own=0.0), "'0' (Two)"),
        ({}, None),
    ],
)
def test_the_first_module_in_time_and_the_innermost_is_named(bad: dict, expected: str) -> None:
    model = nn.Sequential(Two(**bad), nn.ReLU())
    x_NC = torch.ones(2, 3)
    name, output = first_bad_output(model, lambda: model(x_NC))
    assert name == expected
    assert output.shape == (2, 3)
    assert not any(module._forward_hooks for module in model.modules()), "nothing is left behind"


def test_the_model_s_own_operation_is_named_so() -> None:
    model = Two(own=0.0)
    name, _ = first_bad_output(model, lambda: model(torch.ones(2, 3)))
    assert name == "the whole model"


def test_compiled_modules_are_looked_into_and_stay_compiled() -> None:
    model = nn.Sequential(Two(early=0.0))
    # A compiled module does not see hooks that come after its first call.
    model[0].compile(backend="eager")
    model(torch.ones(2, 3))
    compiled = model[0]._compiled_call_impl
    name, _ = first_bad_output(model, lambda: model(torch.ones(2, 3)))
    assert name == "'0.early.1' (Divide)"
    assert model[0]._compiled_call_impl is compiled is not None


def test_the_first_bad_gradient_on_the_way_back_is_named() -> None:
    class Root(nn.Module):
        def forward(self, x_NC: Tensor) -> Tensor:
            return (x_NC * 0).sqrt()  # 0, with a slope of 0 x infinity

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), Root(), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    losses = dict(loss=model(torch.ones(2, 3)).sum())
    assert torch.isfinite(losses["loss"])
    assert first_bad_gradient(model, losses) == "1.weight"
    assert all(parameter.grad is None for parameter in model.parameters())
    good = nn.Linear(3, 1)
    assert first_bad_gradient(good, dict(loss=good(torch.ones(2, 3)).sum())) is None
