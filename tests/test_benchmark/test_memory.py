"""Memory of calls whose allocations are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmconvnextv2.benchmark.memory import measure_memory, peak_bytes, saved_tensors
from mmconvnextv2.benchmark.steps import TrainingStep, adamw

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
MEGA = 1 << 20


def test_the_peak_is_that_of_what_is_alive_together():
    """3 and 5 MiB together, then 5 and 2: the peak is 8."""

    def call() -> None:
        first = torch.empty(3 * MEGA, dtype=torch.uint8)
        second = torch.empty(5 * MEGA, dtype=torch.uint8)
        del first
        third = torch.empty(2 * MEGA, dtype=torch.uint8)
        del second, third

    assert peak_bytes(call, CPU) == pytest.approx(8 * MEGA, rel=0.01)


def test_a_call_that_frees_before_it_allocates():
    """What existed before is not charged, and its end is no credit."""
    held = [torch.empty(4 * MEGA, dtype=torch.uint8)]

    def call() -> None:
        held[0] = torch.empty(MEGA, dtype=torch.uint8)

    assert peak_bytes(call, CPU) == pytest.approx(MEGA, rel=0.01)


def test_saved_tensors_count_once_and_lasting_ones_never():
    """X is kept twice, by both products; y by one; the weight is there anyway."""
    x = torch.randn(64, 64, requires_grad=True)
    y = torch.randn(64, 64)
    weight = torch.randn(64, 64, requires_grad=True)
    with saved_tensors([weight]) as saved:
        ((x @ weight) + (x @ weight.T) + (y @ weight)).sum()
    assert sum(saved.values()) == 2 * 64 * 64 * 4


def test_a_step_is_split_into_its_parts():
    """1000 inputs, 100 outputs, batch 2000: 100,100 parameters; AdamW keeps two of each."""
    layer, x = nn.Linear(1000, 100), torch.randn(2000, 1000)
    step = TrainingStep(layer, lambda: layer(x).square().mean(), CPU, optimizer=adamw(layer))
    step()
    step.release_gradients = False
    memory = measure_memory(step, layer, step.optimizer, CPU)
    assert memory.parameters == memory.gradients == 4 * 100_100
    # Two counters of steps, a number each.
    assert memory.optimizer == 2 * 4 * 100_100 + 2 * 4
    # The images are kept for the weight's gradient, the features for the square's.
    assert memory.saved == 4 * 2000 * 1000 + 4 * 2000 * 100
    # The images were there before; features and their gradients are new.
    features = 4 * 2000 * 100
    assert 2 * features <= memory.activations <= 5 * features + 8 * 100_100
