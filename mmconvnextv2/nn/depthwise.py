"""The depthwise convolution, the one operation that looks across cells.

Three ways, with one result. In float32 on a CPU the kernels of `nn.native` compute visible
positions alone. Elsewhere `_DepthwiseOnCells` scatters the cells into the dense map, convolves, and
gathers the visible positions again; it keeps only its packed input for the backward pass and
scatters a second time there, so nothing dense stays alive between the two. `_Depthwise` is the
same for whole maps.

On a CPU the library's own weight gradient takes nearly all of its time. It is a correlation of the
input with the output's gradient, and a grouped convolution whose kernels are that gradient computes
it several times faster.

Shape suffixes: N batch, M visible cells, S positions along the side of a cell, R rows (visible
positions of the batch), H and W positions of the dense map, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from mmconvnextv2.nn import native


def depthwise_with_fast_gradient(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve whole maps with stride 1 and "same" padding.

    Args:
        x_NCHW: ``(N, C, H, W)``.
        weight: ``(C, 1, K, K)`` with K odd.
        bias: ``(C,)``, or None.

    Returns:
        ``(N, C, H, W)``.
    """
    x_NCHW, weight, bias = cast_for_autocast(x_NCHW, weight, bias)
    if not _is_native(x_NCHW, weight):
        return _Depthwise.apply(x_NCHW, weight, bias)
    batch, _, height, width = x_NCHW.shape
    x_NHWC = x_NCHW.permute(0, 2, 3, 1)
    offsets = torch.arange(batch + 1) * (height * width)
    run = next(run for run in native.RUNS if width % run == 0)
    rows_RC = _DepthwiseOnRows.apply(
        x_NHWC.flatten(0, 2), weight, bias, offsets, None, (height, width), run
    )
    return rows_RC.view(x_NHWC.shape).permute(0, 3, 1, 2)


def depthwise_on_cells(
    cells_MSSC: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    positions: Tensor,
    grid: tuple[int, int, int],
) -> Tensor:
    """Convolve visible cells as if removed ones held zeros.

    Under autocast the computation runs in autocast's dtype, as a convolution does.

    Args:
        cells_MSSC: features of visible cells ``(M, S, S, C)``.
        weight: ``(C, 1, K, K)`` with K odd.
        bias: ``(C,)``, or None.
        offsets: ``(N + 1,)``, the cells of image n are ``offsets[n]`` to ``offsets[n + 1] - 1``.
        positions: ``(M * S * S,)``, the row of each position in the flat dense map.
        grid: shape ``(N, H, W)`` of the dense map.

    Returns:
        ``(M, S, S, C)``.
    """
    cells_MSSC, weight, bias = cast_for_autocast(cells_MSSC, weight, bias)
    if _is_native(cells_MSSC, weight):
        side = cells_MSSC.shape[1]
        rows_RC = _DepthwiseOnRows.apply(
            cells_MSSC.flatten(0, 2), weight, bias, offsets * side**2, positions, grid[1:], side
        )
        return rows_RC.view(cells_MSSC.shape)
    return _DepthwiseOnCells.apply(cells_MSSC, weight, bias, positions, grid)


def cast_for_autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands of a convolution in the dtype that autocast, where it is on, gives them."""
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device_type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _is_native(x: Tensor, weight: Tensor) -> bool:
    return weight.shape[-1] == native.KERNEL_SIZE and native.can_run(x, weight)


class _DepthwiseOnRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_RC: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        offsets: Tensor,
        positions: Tensor | None,
        size: tuple[int, int],
        run: int,
    ) -> Tensor:
        ctx.save_for_backward(rows_RC, weight, offsets, positions)
        ctx.layout = (*size, run)
        return native.depthwise_rows(
            rows_RC, weight, bias, offsets, positions, *ctx.layout, flip=False
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RC: Tensor) -> tuple[Tensor | None, ...]:
        rows_RC, weight, offsets, positions = ctx.saved_tensors
        grad_rows = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_rows = native.depthwise_rows(
                grad_RC, weight, None, offsets, positions, *ctx.layout, flip=True
            )
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            taps_TC = native.depthwise_rows_grad(rows_RC, grad_RC, offsets, positions, *ctx.layout)
            grad_weight = taps_TC[:-1].t().reshape(weight.shape)
            grad_bias = taps_TC[-1] if ctx.needs_input_grad[2] else None
        return grad_rows, grad_weight, grad_bias, None, None, None, None


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
