"""The depthwise convolution over visible cells, the one operation that looks across cells.

`depthwise_on_cells` scatters the cells into the dense map, convolves, and gathers the visible
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
    device_type = cells_MSSC.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        cells_MSSC, weight = cells_MSSC.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _DepthwiseOnCells.apply(cells_MSSC, weight, bias, positions, grid)


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
            # The transposed convolution of stride 1 is a convolution with the flipped kernel.
            dense_grad_NCHW = _convolve(grad_NCHW, weight.flip(2, 3))
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


def _weight_gradient(x_NCHW: Tensor, grad_NCHW: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the kernel, ``(C, 1, K, K)``.

    On a CPU the library's own weight gradient takes most of a depthwise convolution's time. It is
    a correlation of the input with the output's gradient, and a grouped convolution whose kernels
    are that gradient computes it several times faster.
    """
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
