"""Sums over the cells of each image against loops, in every dtype, and their gradients."""

from __future__ import annotations

import pytest
import torch

from mmconvnextv2.nn.segments import repeat_per_cell, sum_per_image

pytestmark = pytest.mark.unit

COUNTS = [3, 1, 400, 7]


@pytest.fixture
def offsets() -> torch.Tensor:
    return torch.tensor([0, *COUNTS]).cumsum(0)


def test_sum_and_repeat_equal_loops(offsets):
    x_MC = torch.randn(sum(COUNTS), 5, dtype=torch.float64)
    sums = torch.stack([rows.sum(0) for rows in x_MC.split(COUNTS)])
    torch.testing.assert_close(sum_per_image(x_MC, offsets), sums)
    repeated = torch.cat([sums[i].expand(n, -1) for i, n in enumerate(COUNTS)])
    assert torch.equal(repeat_per_cell(sums, offsets, sum(COUNTS)), repeated)


def test_gradients(offsets):
    x_MC = torch.randn(sum(COUNTS[:2]), 2, dtype=torch.float64, requires_grad=True)
    x_NC = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sum_per_image(x, offsets[:3]), x_MC)
    assert torch.autograd.gradcheck(lambda x: repeat_per_cell(x, offsets[:3], 4), x_NC)


def test_bfloat16_is_rounded_once(offsets):
    """The sum of 400 cells is as exact as one rounding to bfloat16 allows."""
    x_MC = torch.rand(sum(COUNTS), 64).to(torch.bfloat16)
    exact = torch.stack([rows.double().sum(0) for rows in x_MC.split(COUNTS)])
    error = (sum_per_image(x_MC, offsets).double() - exact).abs() / exact
    assert error.max() <= 2**-8
