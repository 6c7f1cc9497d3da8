"""The fused pointwise layers against the same thing op by op, in float64 and float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mmconvnextv2.nn import GRN, ConvNeXtV2, mlp, native
from mmconvnextv2.nn.mlp import grn_mlp

pytestmark = pytest.mark.unit

# Legend: N image, P position, K hidden channel, C channel.

# More positions than channels, fewer, as many, one position, one image.
SHAPES = [(3, 7, 5), (5, 4, 6), (2, 3, 3), (4, 1, 2), (1, 9, 4)]


class Mlp(nn.Module):
    """The two pointwise layers of a block; every parameter is random."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 4 * channels)
        self.grn = GRN(4 * channels)
        self.project = nn.Linear(4 * channels, channels)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x_NPC: Tensor) -> Tensor:
        return grn_mlp(x_NPC, self.expand, self.grn, self.project)


class OpByOp(Mlp):
    """Image by image, with the norm as a plain square root of a sum."""

    def forward(self, x_NPC: Tensor) -> Tensor:
        return torch.stack([self.of_image(x_PC) for x_PC in x_NPC])

    def of_image(self, x_PC: Tensor) -> Tensor:
        x_PK = F.gelu(self.expand(x_PC))
        wide_PK = x_PK.to(torch.promote_types(x_PK.dtype, torch.float32))
        norm_K = torch.linalg.vector_norm(wide_PK, dim=0)
        relative_K = norm_K / (norm_K.mean() + self.grn.eps)
        return self.project(self.grn.gamma * (x_PK * relative_K) + self.grn.beta + x_PK)


def make(kind: type[Mlp], shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Mlp, Tensor]:
    """A model and its input, the same for every kind and precision."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    model, x_NPC = kind(shape[-1]), torch.randn(shape, generator=generator)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model.to(dtype), x_NPC.to(dtype).requires_grad_()


def result_and_gradients(model: Mlp, x_NPC: Tensor) -> list[Tensor]:
    result = model(x_NPC)
    generator = torch.Generator().manual_seed(1)
    functional = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)
    inputs = [x_NPC, *model.parameters()]
    return [result.detach(), *torch.autograd.grad(result, inputs, functional)]


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernels in C++, and without."""
    if request.param == "torch":
        monkeypatch.setattr(native, "can_run", lambda *tensors: False)
    elif native.library() is None:
        pytest.skip("no C++ compiler that knows OpenMP")
    return request.param


@pytest.mark.parametrize("images_at_a_time", [1, 2, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_op_by_op(shape, images_at_a_time, relative_error, monkeypatch):
    image_bytes = shape[1] * 4 * shape[2] * 8
    monkeypatch.setattr(mlp, "CHUNK_BYTES", images_at_a_time * image_bytes)
    actual = result_and_gradients(*make(Mlp, shape, torch.float64))
    expected = result_and_gradients(*make(OpByOp, shape, torch.float64))
    assert max(relative_error(a, b) for a, b in zip(actual, expected, strict=True)) < 1e-13


@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 2, 3)], ids=str)
def test_gradients_are_those_of_finite_differences(shape):
    model, x_NPC = make(Mlp, shape, torch.float64)
    names = [name for name, _ in model.named_parameters()]

    def function(x_NPC: Tensor, *tensors: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, tensors, strict=True)), (x_NPC,))

    assert torch.autograd.gradcheck(function, (x_NPC, *model.parameters()))


@pytest.mark.parametrize("shape", [(4, 60, 8), (4, 12, 24)], ids=str)
@pytest.mark.usefixtures("way")
def test_float32_is_no_further_from_float64_than_op_by_op(shape, relative_error):
    """Root mean square over draws, since one draw differs by luck."""
    totals = torch.zeros(2, 8, dtype=torch.float64)
    for seed in range(6):
        torch.manual_seed(seed)
        exact = result_and_gradients(*make(OpByOp, shape, torch.float64))
        for i, kind in enumerate((Mlp, OpByOp)):
            results = result_and_gradients(*make(kind, shape, torch.float32))
            errors = [relative_error(a, b) for a, b in zip(results, exact, strict=True)]
            totals[i] += torch.tensor(errors, dtype=torch.float64) ** 2
    fused, plain = totals.sqrt()
    assert (fused > 0).all()
    assert (fused <= 2 * plain).all(), (fused / plain).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("way")
def test_channels_that_are_zero_everywhere(dtype, relative_error):
    """Their norm has the gradient 0, not NaN; so has one that is zero in one image alone."""

    def kill(model: Mlp, x_NPC: Tensor) -> list[Tensor]:
        with torch.no_grad():
            x_NPC[0] = 0
            model.expand.weight[1:3] = 0
            model.expand.bias[:5] = 0
        return result_and_gradients(model, x_NPC)

    actual = kill(*make(Mlp, (3, 9, 4), dtype))
    expected = kill(*make(OpByOp, (3, 9, 4), dtype))
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    assert max(relative_error(a, b) for a, b in zip(actual, expected, strict=True)) < tolerance
    model, x_NPC = make(Mlp, (2, 3, 5), dtype)
    nn.init.zeros_(model.expand.bias)
    with torch.no_grad():
        x_NPC.zero_()
    assert all(torch.isfinite(x).all() for x in result_and_gradients(model, x_NPC))


def test_autocast_gives_what_a_linear_layer_gives():
    with torch.autocast("cpu", torch.bfloat16):
        results = result_and_gradients(*make(Mlp, (2, 5, 4), torch.float32))
    assert results[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in results[1:])


def test_the_network_uses_it_when_it_trains_op_by_op(tiny_arch, random_mask, monkeypatch):
    """The masked layout, the reference, and images of unequal counts go op by op."""
    calls = []

    def spy(*args: object) -> Tensor:
        calls.append(args)
        return grn_mlp(*args)

    monkeypatch.setattr("mmconvnextv2.nn.block.grn_mlp", spy)
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
