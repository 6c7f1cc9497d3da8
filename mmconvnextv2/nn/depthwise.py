"""The depthwise convolution, the one operation that looks across cells.

On a CPU the library's own weight gradient takes nearly all of its time. It is a correlation of the
input with the output's gradient, and a grouped convolution whose kernels are that gradient computes
it several times faster: `depthwise_with_fast_gradient` for whole maps, and `depthwise_on_cells` for
visible cells. The latter scatters the cells into the dense map, convolves, and gathers the visible
positions again. It keeps only its packed input for the backward pass and scatters a second time
there, so nothing dense stays alive between the two. On a GPU it is the same three steps; a kernel
that reads neighbours through the cell index would save the dense map altogether.

Shape suffixes: N batch, M visible cells, S positions along the side of a cell, H and W positions
of the dense map, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight


def depthwise_with_fast_gradient(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve whole maps with stride 1 and "same" padding.

    Args:
        x_NCHW: ``(N, C, H, W)``.
        weight: ``(C, 1, K, K)`` with K odd.
        bias: ``(C,)``, or None.

    Returns:
        ``(N, C, H, W)``.
    """
    x_NCHW, weight, bias = _autocast(x_NCHW, weight, bias)
    return _Depthwise.apply(x_NCHW, weight, bias)


def depthwise_on_cells(
    cells_MSSC: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    grid: tuple[int, int, int],
) -> Tensor:
    """Convolve visible cells as if removed ones held zeros.

    Under autocast the computation runs in autocast's dtype, as a convolution does.

    Args:
        cells_MSSC: features of visible cells ``(M, S, S, C)``.
        weight: ``(C, 1, K, K)`` with K odd.
        bias: ``(C,)``, or None.
        positions: ``(M * S * S,)``, the row of each position in the flat dense map.
        grid: shape ``(N, H, W)`` of the dense map.

    Returns:
        ``(M, S, S, C)``.
    """
    cells_MSSC, weight, bias = _autocast(cells_MSSC, weight, bias)
    return _DepthwiseOnCells.apply(cells_MSSC, weight, bias, positions, grid)


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device_type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight)
        return _convolve(x_NCHW, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_NCHW, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(grad_NCHW, weight)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x_NCHW, grad_NCHW, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_NCHW.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias


class _DepthwiseOnCells(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cells_MSSC: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        positions: Tensor,
        grid: tuple[int, int, int],
    ) -> Tensor:
        ctx.save_for_backward(cells_MSSC, weight, positions)
        ctx.grid = grid
        x_NCHW = scatter_cells(cells_MSSC, positions, grid)
        y_NCHW = _convolve(x_NCHW, weight, bias)
        return _gather(y_NCHW, positions).view(cells_MSSC.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MSSC: Tensor) -> tuple[Tensor | None, ...]:
        cells_MSSC, weight, positions = ctx.saved_tensors
        grad_NCHW = scatter_cells(grad_MSSC, positions, ctx.grid)
        grad_cells = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            dense_grad_NCHW = _input_gradient(grad_NCHW, weight)
            grad_cells = _gather(dense_grad_NCHW, positions).view(cells_MSSC.shape)
        if ctx.needs_input_grad[1]:
            x_NCHW = scatter_cells(cells_MSSC, positions, ctx.grid)
            grad_weight = _weight_gradient(x_NCHW, grad_NCHW, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_MSSC.sum(dim=(0, 1, 2))
        return grad_cells, grad_weight, grad_bias, None, None


def scatter_cells(cells_MSSC: Tensor, positions: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Put visible cells into a dense map that holds zeros elsewhere; differentiable.

    Args:
        cells_MSSC: features of visible cells ``(M, S, S, C)``.
        positions: ``(M * S * S,)``, the row of each position in the flat dense map.
        grid: shape ``(N, H, W)`` of the dense map.

    Returns:
        ``(N, C, H, W)``, channels last in memory.
    """
    batch, height, width = grid
    channels = cells_MSSC.shape[-1]
    rows = cells_MSSC.new_zeros(batch * height * width, channels)
    rows.index_copy_(0, positions, cells_MSSC.reshape(-1, channels))
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _gather(x_NCHW: Tensor, positions: Tensor) -> Tensor:
    """Rows ``(M * S * S, C)`` of the visible positions."""
    return x_NCHW.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, positions)


def _convolve(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x_NCHW, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def _input_gradient(grad_NCHW: Tensor, weight: Tensor) -> Tensor:
    """Transposed convolution: at stride 1 a convolution with the flipped kernel."""
    return _convolve(grad_NCHW, weight.flip(2, 3))


def _weight_gradient(x_NCHW: Tensor, grad_NCHW: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the kernel, ``(C, 1, K, K)``."""
    batch, channels, height, width = x_NCHW.shape
    padding = weight.shape[-1] // 2
    if x_NCHW.device.type != "cpu":
        return conv2d_weight(x_NCHW, weight.shape, grad_NCHW, padding=padding, groups=channels)
    per_image = F.conv2d(
        x_NCHW.reshape(1, batch * channels, height, width),
        grad_NCHW.reshape(batch * channels, 1, height, width),
        padding=padding,
        groups=batch * channels,
    )
    return per_image.view(batch, *weight.shape).sum(dim=0)
