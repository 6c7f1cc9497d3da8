"""The fused GELU, GRN and linear layer against the same thing op by op, in float64 and float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmconvnextv2.nn import ConvNeXtV2, activation
from mmconvnextv2.nn.activation import gelu_grn_linear

pytestmark = pytest.mark.unit

# Legend: N image, P position, K hidden channel, C channel.

EPS = 1e-6
# More positions than channels, fewer, as many, one position, one image.
SHAPES = [(3, 7, 5), (5, 4, 6), (2, 3, 3), (4, 1, 2), (1, 9, 4)]


def op_by_op(
    hidden_NPK: Tensor, gamma: Tensor, beta: Tensor, eps: float, weight: Tensor, bias: Tensor
) -> Tensor:
    """Image by image, with the norm as a plain square root of a sum."""
    out = []
    for hidden_PK in hidden_NPK:
        x_PK = F.gelu(hidden_PK)
        wide_PK = x_PK.to(torch.promote_types(x_PK.dtype, torch.float32))
        norm_K = torch.linalg.vector_norm(wide_PK, dim=0)
        relative_K = norm_K / (norm_K.mean() + eps)
        out.append(F.linear(gamma * (x_PK * relative_K) + beta + x_PK, weight, bias))
    return torch.stack(out)


def make_inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    images, positions, channels = shape
    hidden_channels = 4 * channels
    sizes = [
        (images, positions, hidden_channels),
        (hidden_channels,),
        (hidden_channels,),
        (channels, hidden_channels),
        (channels,),
    ]
    return [torch.randn(size, dtype=dtype).requires_grad_() for size in sizes]


def result_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    hidden, gamma, beta, weight, bias = inputs
    result = function(hidden, gamma, beta, EPS, weight, bias)
    generator = torch.Generator().manual_seed(1)
    functional = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)
    return [result.detach(), *torch.autograd.grad(result, inputs, functional)]


@pytest.mark.parametrize("images_at_a_time", [1, 2, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_op_by_op(shape, images_at_a_time, relative_error, monkeypatch):
    inputs = make_inputs(shape, torch.float64)
    image_bytes = inputs[0][0].numel() * 8
    monkeypatch.setattr(activation, "CHUNK_BYTES", images_at_a_time * image_bytes)
    actual = result_and_gradients(gelu_grn_linear, inputs)
    expected = result_and_gradients(op_by_op, inputs)
    assert max(relative_error(a, b) for a, b in zip(actual, expected, strict=True)) < 1e-13


@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 2, 3)], ids=str)
def test_gradients_are_those_of_finite_differences(shape):
    hidden, gamma, beta, weight, bias = make_inputs(shape, torch.float64)

    def function(*tensors: Tensor) -> Tensor:
        return gelu_grn_linear(*tensors[:3], EPS, *tensors[3:])

    assert torch.autograd.gradcheck(function, (hidden, gamma, beta, weight, bias))


@pytest.mark.parametrize("shape", [(4, 60, 8), (4, 12, 24)], ids=str)
def test_float32_is_no_further_from_float64_than_op_by_op(shape, relative_error):
    """Root mean square over draws, since one draw differs by luck."""
    totals = torch.zeros(2, 6, dtype=torch.float64)
    for seed in range(6):
        torch.manual_seed(seed)
        inputs = make_inputs(shape, torch.float32)
        exact = result_and_gradients(
            op_by_op, [x.detach().double().requires_grad_() for x in inputs]
        )
        for i, function in enumerate((gelu_grn_linear, op_by_op)):
            results = result_and_gradients(function, inputs)
            errors = [relative_error(a, b) for a, b in zip(results, exact, strict=True)]
            totals[i] += torch.tensor(errors, dtype=torch.float64) ** 2
    fused, plain = totals.sqrt()
    assert (fused > 0).all()
    assert (fused <= 2 * plain).all(), (fused / plain).tolist()


@pytest.mark.parametrize("shape", [(2, 9, 2), (2, 3, 5)], ids=str)
def test_channels_that_are_zero_everywhere(shape, relative_error):
    """Their norm has the gradient 0, not NaN; so has one that is zero in one image alone."""
    inputs = make_inputs(shape, torch.float64)
    with torch.no_grad():
        inputs[0][:, :, 1] = 0
        inputs[0][0, :, 2] = 0
    actual = result_and_gradients(gelu_grn_linear, inputs)
    expected = result_and_gradients(op_by_op, inputs)
    assert max(relative_error(a, b) for a, b in zip(actual, expected, strict=True)) < 1e-13
    with torch.no_grad():
        inputs[0].zero_()
    assert all(torch.isfinite(x).all() for x in result_and_gradients(gelu_grn_linear, inputs))


def test_autocast_gives_what_a_linear_layer_gives():
    inputs = make_inputs((2, 5, 4), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        results = result_and_gradients(gelu_grn_linear, inputs)
    assert results[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in results[1:])


def test_the_network_uses_it_when_it_trains_op_by_op(tiny_arch, random_mask, monkeypatch):
    """The masked layout, the reference, and images of unequal counts go op by op."""
    calls = []

    def spy(*args: object) -> Tensor:
        calls.append(args)
        return gelu_grn_linear(*args)

    monkeypatch.setattr("mmconvnextv2.nn.block.gelu_grn_linear", spy)
    net = ConvNeXtV2(arch=tiny_arch)
    blocks, x_NCHW = sum(net.depths), torch.randn(2, 3, 64, 64)
    for layout, counts, expected in [
        ("packed", [2, 2], blocks),
        ("packed", [1, 2], 0),
        ("masked", [2, 2], 0),
    ]:
        calls.clear()
        net.mask_layout = layout
        net(x_NCHW, random_mask(counts, (2, 2)))
        assert len(calls) == expected, (layout, counts)
    calls.clear()
    net(x_NCHW)
    assert len(calls) == blocks
    calls.clear()
    torch.export.export(net.eval(), (x_NCHW,))
    torch.jit.trace(net, (x_NCHW,), check_trace=False)
    assert not calls
