"""A block's pointwise layers with GELU and GRN between them, as one function for a CPU.

Op by op, PyTorch sends the 4C hidden features through main memory about fifteen times forward and
backward, and keeps three copies of them. Here a few images at a time go through everything while
they are in the processor's cache, and only the input of the GELU is kept; what the backward pass
needs besides is computed again. `Block` holds the same computation op by op: the reference, and
what runs everywhere else.

Shape suffixes: N batch, P positions of an image, R rows (positions of some images), K hidden
channels (4C), C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmconvnextv2.nn import native
from mmconvnextv2.nn.grn import GRN

CHUNK_BYTES = 2**22
"""Hidden features to work on at a time: about what fits into the caches of two cores."""


def grn_mlp(x_NPC: Tensor, expand: nn.Linear, grn: GRN, project: nn.Linear) -> Tensor:
    """Compute ``project(grn(gelu(expand(x))))`` (paper, figure 5).

    Under autocast the result has the dtype that a linear layer's would.

    Args:
        x_NPC: ``(N, P, C)``.
        expand: first pointwise layer, C to K.
        grn: normalises the K channels.
        project: second pointwise layer, K to C.

    Returns:
        ``(N, P, C)``.
    """
    x_NPC = x_NPC.contiguous()
    layers = [expand.weight, expand.bias, project.weight, project.bias]
    device_type = x_NPC.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        x_NPC, layers = x_NPC.to(dtype), [parameter.to(dtype) for parameter in layers]
    return _GrnMlp.apply(x_NPC, *layers, grn.gamma, grn.beta, grn.eps)


class _GrnMlp(torch.autograd.Function):
    """With f = 1 + gamma * N(X), one factor a channel and image, GRN is X * f + beta."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NPC: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
    ) -> Tensor:
        batch, positions, _ = x_NPC.shape
        hidden_NPK = x_NPC.new_empty(batch, positions, len(gamma))
        norm_NK = gamma.new_empty(batch, len(gamma), dtype=_wide(x_NPC.dtype))
        out_NPC = x_NPC.new_empty(batch, positions, len(weight2))
        for chunk, (y_NPK,) in _chunks(hidden_NPK, buffers=1):
            torch.mm(_rows(x_NPC[chunk]), weight1.t(), out=_rows(hidden_NPK[chunk]))
            norm_NK[chunk] = _gelu(hidden_NPK[chunk], bias1, out=y_NPK).sqrt()
            factor_NK = 1 + gamma * _relative(norm_NK[chunk], eps)
            _scale(y_NPK, factor_NK, beta, out=y_NPK)
            torch.addmm(bias2, _rows(y_NPK), weight2.t(), out=_rows(out_NPC[chunk]))
        ctx.save_for_backward(x_NPC, hidden_NPK, norm_NK, weight1, bias1, weight2, gamma, beta)
        ctx.eps = eps
        return out_NPC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NPC: Tensor) -> tuple[Tensor | None, ...]:
        x_NPC, hidden_NPK, norm_NK, weight1, bias1, weight2, gamma, beta = ctx.saved_tensors
        dtype, wide = x_NPC.dtype, norm_NK.dtype
        grad_NPC = grad_NPC.contiguous()
        grad_x_NPC = torch.empty_like(x_NPC)
        grad_weight1, grad_weight2 = (torch.empty_like(w, dtype=wide) for w in (weight1, weight2))
        grad_bias1, grad_gamma = (torch.zeros_like(gamma, dtype=wide) for _ in range(2))
        grad_bias2 = grad_NPC.sum(dim=(0, 1), dtype=wide)
        for chunk, (x_NPK, y_NPK, slope_NPK) in _chunks(hidden_NPK, buffers=3):
            grad_RC = _rows(grad_NPC[chunk])
            relative_NK = _relative(norm_NK[chunk], ctx.eps)
            factor_NK = 1 + gamma * relative_NK
            _gelu_again(hidden_NPK[chunk], bias1, factor_NK, beta, x_NPK, slope_NPK, y_NPK)
            _add_product(grad_weight2, grad_RC.t(), _rows(y_NPK), chunk)

            grad_y_NPK = y_NPK
            torch.mm(grad_RC, weight2, out=_rows(grad_y_NPK))
            grad_factor_NK = _product_sum(grad_y_NPK, x_NPK)
            grad_gamma += (grad_factor_NK * relative_NK).sum(dim=0)
            through_NK = _through_norm(grad_factor_NK * gamma, norm_NK[chunk], ctx.eps)
            grad_hidden_NPK = slope_NPK
            sums_NK = _gelu_gradient(grad_y_NPK, x_NPK, factor_NK, through_NK, grad_hidden_NPK)
            grad_bias1 += sums_NK.sum(dim=0)
            _add_product(grad_weight1, _rows(grad_hidden_NPK).t(), _rows(x_NPC[chunk]), chunk)
            torch.mm(_rows(grad_hidden_NPK), weight1, out=_rows(grad_x_NPC[chunk]))
        grad_beta = grad_bias2 @ weight2.to(wide)
        return (
            grad_x_NPC,
            *(g.to(dtype) for g in (grad_weight1, grad_bias1, grad_weight2, grad_bias2)),
            grad_gamma.to(gamma.dtype),
            grad_beta.to(beta.dtype),
            None,
        )


def _chunks(hidden_NPK: Tensor, buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Ranges of images whose hidden features together fit into the cache, one image at least.

    With each come buffers for so many features, in the same memory every time: fresh memory
    costs more than the arithmetic on it.
    """
    batch, positions, channels = hidden_NPK.shape
    size = max(1, CHUNK_BYTES // (positions * channels * hidden_NPK.element_size()))
    memory = [hidden_NPK.new_empty(min(size, batch), positions, channels) for _ in range(buffers)]
    for start in range(0, batch, size):
        chunk = slice(start, min(start + size, batch))
        yield chunk, [buffer[: chunk.stop - start] for buffer in memory]


def _rows(x_NPC: Tensor) -> Tensor:
    """View ``(R, C)``."""
    return x_NPC.view(-1, x_NPC.shape[-1])


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What norms and sums over many positions are computed in."""
    return torch.promote_types(dtype, torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor, chunk: slice) -> None:
    """Add a product to a sum over chunks, which starts with the first."""
    first = chunk.start == 0
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


def _gelu(hidden_NPK: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """GELU of hidden + bias; returns its sum of squares ``(N, K)`` over positions."""
    if native.can_run(hidden_NPK, bias):
        return native.gelu_square_sum(hidden_NPK, bias, out)
    torch.ops.aten.gelu.out(hidden_NPK + bias, out=out)
    return out.to(_wide(out.dtype)).square().sum(dim=1)


def _scale(x_NPK: Tensor, factor_NK: Tensor, shift: Tensor, out: Tensor) -> None:
    torch.addcmul(shift.to(out.dtype), x_NPK, factor_NK.to(out.dtype)[:, None], out=out)


def _gelu_again(
    hidden_NPK: Tensor,
    bias: Tensor,
    factor_NK: Tensor,
    shift: Tensor,
    out: Tensor,
    slope: Tensor,
    scaled: Tensor,
) -> None:
    """GELU of hidden + bias into `out`, its derivative into `slope`, GRN's output into `scaled`."""
    if native.can_run(hidden_NPK, bias, factor_NK, shift):
        native.gelu_again(hidden_NPK, bias, factor_NK, shift, out, slope, scaled)
        return
    biased_NPK = hidden_NPK + bias
    torch.ops.aten.gelu.out(biased_NPK, out=out)
    torch.ops.aten.gelu_backward.grad_input(
        torch.ones_like(biased_NPK), biased_NPK, grad_input=slope
    )
    _scale(out, factor_NK, shift, out=scaled)


def _product_sum(a_NPK: Tensor, b_NPK: Tensor) -> Tensor:
    """Sum of a * b over positions, ``(N, K)``."""
    if native.can_run(a_NPK, b_NPK):
        return native.product_sum(a_NPK, b_NPK)
    return (a_NPK * b_NPK).sum(dim=1, dtype=_wide(a_NPK.dtype))


def _gelu_gradient(
    grad_y_NPK: Tensor, gelu_NPK: Tensor, factor_NK: Tensor, through_NK: Tensor, slope: Tensor
) -> Tensor:
    """Gradient of the GELU's input, through its output and that one's norm.

    Args:
        grad_y_NPK: gradient of GRN's output.
        gelu_NPK: the GELU's output.
        factor_NK: what GRN multiplies by.
        through_NK: what the GELU's output is multiplied by in its gradient through the norm.
        slope: holds the GELU's derivative and receives the result.

    Returns:
        Sum of the gradient over positions, ``(N, K)``.
    """
    if native.can_run(grad_y_NPK, factor_NK, through_NK):
        return native.gelu_grn_grad(grad_y_NPK, gelu_NPK, factor_NK, through_NK, slope)
    factor_N1K, through_N1K = (x.to(slope.dtype)[:, None] for x in (factor_NK, through_NK))
    slope *= (gelu_NPK * through_N1K).addcmul_(grad_y_NPK, factor_N1K)
    return slope.sum(dim=1, dtype=_wide(slope.dtype))


def _relative(norm_NK: Tensor, eps: float) -> Tensor:
    """Each channel's norm relative to the mean one (paper, equation 2, with the mean)."""
    return norm_NK / (norm_NK.mean(dim=-1, keepdim=True) + eps)


def _through_norm(grad_relative_NK: Tensor, norm_NK: Tensor, eps: float) -> Tensor:
    """What a channel's values are multiplied by in their gradient through its norm.

    Zero for a channel that is zero everywhere.
    """
    scale_N1 = norm_NK.mean(dim=-1, keepdim=True) + eps
    shared_N1 = (grad_relative_NK * norm_NK).mean(dim=-1, keepdim=True) / scale_N1.square()
    grad_norm_NK = grad_relative_NK / scale_N1 - shared_N1
    return torch.where(norm_NK > 0, grad_norm_NK / norm_NK.where(norm_NK > 0, 1), 0)
