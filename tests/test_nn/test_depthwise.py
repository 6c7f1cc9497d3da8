"""The depthwise convolutions against PyTorch's own, and on memory that nobody has written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mmconvnextv2.nn import ConvNeXtV2
from mmconvnextv2.nn.depthwise import depthwise_with_fast_gradient

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (12, 5)], ids=str)
def test_fast_gradient_is_the_librarys(size, kernel_size, relative_error):
    conv = nn.Conv2d(6, 6, kernel_size, padding=kernel_size // 2, groups=6).double()
    x_NCHW = torch.randn(3, 6, *size, dtype=torch.float64, requires_grad=True)
    wanted = conv(x_NCHW)
    actual = depthwise_with_fast_gradient(x_NCHW, conv.weight, conv.bias)
    assert relative_error(actual, wanted) < 1e-14
    inputs, functional = [x_NCHW, conv.weight, conv.bias], torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, inputs, functional)
    gradients = torch.autograd.grad(actual, inputs, functional)
    assert max(relative_error(a, b) for a, b in zip(gradients, expected, strict=True)) < 1e-13


def test_fast_gradient_computes_only_what_is_asked_for():
    weight = torch.randn(4, 1, 7, 7, requires_grad=True)
    depthwise_with_fast_gradient(torch.randn(2, 4, 5, 5), weight, None).sum().backward()
    assert weight.grad is not None


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New memory holds NaN until somebody writes it."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("counts", [[1, 4], [3, 3]], ids=str)
@pytest.mark.parametrize("layout", ["dense", "packed", "masked"])
@pytest.mark.usefixtures("poisoned_memory")
def test_nothing_reads_what_nobody_wrote(layout, counts, tiny_arch, randomize_grn, random_mask):
    net = randomize_grn(ConvNeXtV2(arch=tiny_arch, gap_before_final_norm=False))
    x_NCHW = torch.randn(2, 3, 64, 96, requires_grad=True)
    mask_NHW = None
    if layout != "dense":
        net.mask_layout = layout
        mask_NHW = random_mask(counts, (2, 3))
    (feature,) = net(x_NCHW, mask_NHW)
    feature.square().sum().backward()
    gradients = [x_NCHW.grad, *(p.grad for p in net.parameters())]
    assert all(torch.isfinite(x).all() for x in [feature, *gradients])
