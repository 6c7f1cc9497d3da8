"""GELU, GRN and the block's second pointwise layer as one function, for training on a CPU.

Op by op, PyTorch sends the 4C features through main memory about ten times forward and backward,
and keeps three copies of them. Here a few images at a time stay in the processor's cache, and only
the input of the GELU is kept; what the backward pass needs besides is computed again. `Block` holds
the same computation op by op: the reference, and what runs everywhere else.

Shape suffixes: N batch, P positions of an image, K hidden channels (4C), C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 2**22
"""Hidden features to work on at a time: about what fits into the caches of two cores."""


def gelu_grn_linear(
    hidden_NPK: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Compute ``linear(grn(gelu(hidden)))`` (paper, figure 5).

    Under autocast the result has the dtype that a linear layer's would.

    Args:
        hidden_NPK: output of the first pointwise layer ``(N, P, K)``.
        gamma: GRN's gamma ``(K,)``.
        beta: GRN's beta ``(K,)``.
        eps: GRN's epsilon.
        weight: of the second pointwise layer ``(C, K)``.
        bias: of the second pointwise layer ``(C,)``.

    Returns:
        ``(N, P, C)``.
    """
    device_type = hidden_NPK.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden_NPK, weight, bias = hidden_NPK.to(dtype), weight.to(dtype), bias.to(dtype)
    return _GeluGrnLinear.apply(hidden_NPK, gamma, beta, eps, weight, bias)


class _GeluGrnLinear(torch.autograd.Function):
    """With f = 1 + gamma * N(X), one factor a channel and image, GRN is X * f + beta.

    Beta only adds ``weight @ beta`` to the bias. The factor multiplies either the features or the
    columns of the weight, whichever is smaller: an image of stage 1 has many more positions than
    channels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NPK: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        batch, positions, _ = hidden_NPK.shape
        dtype = hidden_NPK.dtype
        wide = torch.promote_types(dtype, torch.float32)
        out_NPC = hidden_NPK.new_empty(batch, positions, weight.shape[0])
        norm_NK = gamma.new_empty(batch, len(gamma), dtype=wide)
        shift = torch.addmv(bias, weight, beta.to(dtype))
        for chunk in _chunks(hidden_NPK):
            x_NPK = F.gelu(hidden_NPK[chunk])
            norm_NK[chunk] = x_NPK.to(wide).square().sum(dim=1).sqrt()
            factor_N1K = (1 + gamma * _relative(norm_NK[chunk], eps)).to(dtype)[:, None]
            if _scale_weight(x_NPK, weight):
                torch.baddbmm(shift, x_NPK, (weight * factor_N1K).mT, out=out_NPC[chunk])
            else:
                y_PK = x_NPK.mul_(factor_N1K).flatten(0, 1)
                torch.addmm(shift, y_PK, weight.t(), out=out_NPC[chunk].flatten(0, 1))
        ctx.save_for_backward(hidden_NPK, norm_NK, gamma, beta, weight)
        ctx.eps = eps
        return out_NPC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NPC: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NPK, norm_NK, gamma, beta, weight = ctx.saved_tensors
        dtype, wide = hidden_NPK.dtype, norm_NK.dtype
        grad_NPC = grad_NPC.contiguous()
        grad_hidden_NPK = torch.empty_like(hidden_NPK)
        grad_gamma = torch.zeros_like(gamma, dtype=wide)
        grad_bias = grad_NPC.sum(dim=(0, 1), dtype=wide)
        grad_weight = torch.outer(grad_bias, beta.to(wide))
        for chunk in _chunks(hidden_NPK):
            x_NPK, grad_out_NPC = F.gelu(hidden_NPK[chunk]), grad_NPC[chunk]
            relative_NK = _relative(norm_NK[chunk], ctx.eps)
            factor_N1K = (1 + gamma * relative_NK).to(dtype)[:, None]
            if _scale_weight(x_NPK, weight):
                product_NCK = grad_out_NPC.mT @ x_NPK
                grad_weight += (product_NCK * factor_N1K).sum(dim=0)
                grad_factor_NK = (product_NCK * weight).sum(dim=1, dtype=wide)
                grad_x_NPK = grad_out_NPC @ (weight * factor_N1K)
            else:
                grad_out_PC = grad_out_NPC.flatten(0, 1)
                y_NPK = x_NPK * factor_N1K
                grad_weight += grad_out_PC.t() @ y_NPK.flatten(0, 1)
                grad_y_NPK = torch.mm(grad_out_PC, weight, out=y_NPK.flatten(0, 1)).view_as(x_NPK)
                grad_factor_NK = (grad_y_NPK * x_NPK).sum(dim=1, dtype=wide)
                grad_x_NPK = grad_y_NPK.mul_(factor_N1K)
            grad_gamma += (grad_factor_NK * relative_NK).sum(dim=0)
            through_norm_NK = _through_norm(grad_factor_NK * gamma, norm_NK[chunk], ctx.eps)
            grad_x_NPK.addcmul_(x_NPK, through_norm_NK.to(dtype)[:, None])
            torch.ops.aten.gelu_backward.grad_input(
                grad_x_NPK, hidden_NPK[chunk], grad_input=grad_hidden_NPK[chunk]
            )
        grad_beta = grad_bias @ weight.to(wide)
        return (
            grad_hidden_NPK,
            grad_gamma.to(gamma.dtype),
            grad_beta.to(beta.dtype),
            None,
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
        )


def _chunks(hidden_NPK: Tensor) -> Iterator[slice]:
    """Ranges of images whose hidden features together fit into the cache, one image at least."""
    batch, positions, channels = hidden_NPK.shape
    size = max(1, CHUNK_BYTES // (positions * channels * hidden_NPK.element_size()))
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


def _scale_weight(x_NPK: Tensor, weight: Tensor) -> bool:
    return x_NPK.shape[1] > weight.shape[0]


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
