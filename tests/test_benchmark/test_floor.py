"""Recorded products and counted FLOPs of small modules, against counts made by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmconvnextv2.benchmark.floor import Replay, count_operations

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def shapes(products):
    """Left and right factor of each product."""
    return [tuple(operand.shape for operand in product.operands[-2:]) for product in products]


def test_a_linear_layer():
    """5 rows, 3 to 7 features: forward, gradient of the weight, gradient of the input."""
    layer, x = nn.Linear(3, 7), torch.randn(5, 3, requires_grad=True)
    flops, products = count_operations(lambda: layer(x).sum().backward())
    assert [product.function for product in products] == ["addmm", "mm", "mm"]
    found = shapes(products)
    assert found[0] == ((5, 3), (3, 7))
    # Each gradient is a product of 3 x 5 x 7 in one of the orders and transpositions.
    assert all(sorted({*left, *right}) == [3, 5, 7] for left, right in found)
    assert [product.flops for product in products] == [105, 105, 105]
    assert flops == 3 * 105


def test_a_product_inside_a_custom_function_is_seen():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            return grad @ weight.T, x.T @ grad

    x, weight = torch.randn(2, 4, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    _, products = count_operations(lambda: Double.apply(x, weight).sum().backward())
    assert shapes(products) == [((2, 4), (4, 6)), ((2, 6), (6, 4)), ((4, 2), (2, 6))]


def test_products_that_write_into_a_given_tensor_are_seen():
    a, b, out = torch.randn(2, 3), torch.randn(3, 4), torch.zeros(2, 4)

    def call() -> None:
        torch.mm(a, b, out=out)
        torch.addmm(out, a, b, out=out)
        out.addmm_(a, b)

    _, products = count_operations(call)
    assert [product.function for product in products] == ["mm", "addmm", "addmm"]
    assert [product.flops for product in products] == [24, 24, 24]


def test_fused_attention_is_taken_apart():
    """Two heads of 8 queries and 16 features: 2 x 8 x 8 x 16 for each of two products."""
    q = torch.randn(1, 2, 8, 16)
    flops, products = count_operations(lambda: F.scaled_dot_product_attention(q, q, q))
    assert [product.function for product in products] == ["bmm", "bmm"]
    assert flops == sum(product.flops for product in products) == 2 * 2 * 8 * 8 * 16


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_convolutions_count_their_groups_backward_as_well(groups):
    """6 to 6 channels, 3x3, 10x10 positions, 2 images; each gradient costs what forward does."""
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=groups)
    x = torch.randn(2, 6, 10, 10, requires_grad=True)
    flops, products = count_operations(lambda: conv(x).sum().backward())
    assert products == []
    assert flops == 3 * (2 * 100 * 6 * (6 // groups) * 9)


def test_a_transposed_convolution():
    """Every input position meets the whole kernel: 4 x 8 channels x 16."""
    conv = nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    flops, _ = count_operations(lambda: conv(x).sum().backward())
    forward, _ = count_operations(lambda: conv(x))
    assert flops - forward == 2 * (25 * 4 * 8 * 16)


def test_a_replay_computes_the_same_products():
    layer, x = nn.Linear(3, 7), torch.randn(5, 3, requires_grad=True)
    _, products = count_operations(lambda: layer(x).sum().backward())
    _, again = count_operations(Replay(products, CPU))
    assert again == products


def test_transposed_and_expanded_factors_stay_what_they_are():
    a, bias = torch.randn(6, 4).T, torch.randn(1).expand(5)
    _, products = count_operations(lambda: torch.addmm(bias, a, torch.randn(6, 5)))
    assert [operand.stride for operand in products[0].operands] == [(0,), (1, 4), (5, 1)]
    _, again = count_operations(Replay(products, CPU))
    assert again == products


def test_empty_products_are_no_products():
    _, products = count_operations(lambda: torch.randn(0, 3) @ torch.randn(3, 4))
    assert products == []
