"""The depthwise convolution over visible cells as Triton kernels: nothing dense, for GPUs.

A table says for each position that a visible cell's windows reach which row of the packed features
it is, or that it was removed. The kernels read through it, compute visible positions only, and add
up in at least float32. The weight gradient is a sum of partial sums in a fixed order, so that a
result repeats bit by bit. The reference is `depthwise_on_cells` in `nn.depthwise`.

Importing this needs Triton, which comes with torch's builds for GPUs: import it on demand.
`torch.compile` sees the two launchers as operators and does not look inside.

Shape suffixes: M visible cells, S positions along the side of a cell, K side of the kernel, T = K^2
its taps, B = S + K - 1 side of what the windows of a cell cover, P positions, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from mmconvnextv2.nn.cells import VisibleCells

BLOCK_SIZE = 2048
"""Sums that a program of the convolution holds at most: 16 registers of each of its 128 threads."""

MAX_BLOCK_POSITIONS = 64
"""With one position a thread the compiler would pass the table's rows on through shared memory."""

WEIGHT_PROGRAMS = 1024
"""Programs that share the weight gradient at most, on any device: it rounds alike on all."""


def neighbour_rows(cells: VisibleCells, side: int, kernel_size: int = 7) -> Tensor:
    """Build the table: which rows of the packed features the windows of each cell read.

    Args:
        cells: plan of the batch.
        side: positions along the side of a cell.
        kernel_size: side of the kernel, odd.

    Returns:
        ``(M, B, B)`` int32, rows of a ``(M * S * S, C)`` tensor; -1 where a position was removed or
        lies outside its image.
    """
    positions = cells.positions[side]
    batch, height, width = cells.grid(side)
    rows = positions.new_full((batch * height * width,), -1, dtype=torch.int32)
    rows[positions] = torch.arange(len(positions), dtype=torch.int32, device=rows.device)
    reach = kernel_size // 2
    padded_NHW = F.pad(rows.view(batch, height, width), (reach, reach, reach, reach), value=-1)
    size = side + kernel_size - 1
    tables_NHWBB = padded_NHW.unfold(1, size, side).unfold(2, size, side)
    return tables_NHWBB[cells.image_M, cells.row_M, cells.column_M].contiguous()


def depthwise_through_table(
    cells_MSSC: Tensor, weight: Tensor, bias: Tensor | None, table_MBB: Tensor
) -> Tensor:
    """Convolve visible cells as if removed ones held zeros.

    Args:
        cells_MSSC: features of visible cells ``(M, S, S, C)``.
        weight: ``(C, 1, K, K)`` with K odd, in the dtype of the features.
        bias: ``(C,)`` in that dtype, or None.
        table_MBB: from `neighbour_rows`, for this S and K.

    Returns:
        ``(M, S, S, C)``.

    Raises:
        TypeError: features and weight have different dtypes.
    """
    if weight.dtype != cells_MSSC.dtype:
        raise TypeError(
            f"features and weight must have one dtype, got {cells_MSSC.dtype} and {weight.dtype}"
        )
    return _DepthwiseThroughTable.apply(cells_MSSC, weight, bias, table_MBB)


class _DepthwiseThroughTable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cells_MSSC: Tensor, weight: Tensor, bias: Tensor | None, table_MBB: Tensor
    ) -> Tensor:
        cells_MSSC = cells_MSSC.contiguous()
        ctx.save_for_backward(cells_MSSC, weight, table_MBB)
        return _convolve(cells_MSSC, _by_tap(weight), bias, table_MBB)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MSSC: Tensor) -> tuple[Tensor | None, ...]:
        cells_MSSC, weight, table_MBB = ctx.saved_tensors
        grad_MSSC = grad_MSSC.contiguous()
        grad_cells = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # Position q is in the window of p at tap t as p is in that of q at tap K * K - 1 - t.
            grad_cells = _convolve(grad_MSSC, _by_tap(weight).flip(0), None, table_MBB)
        if ctx.needs_input_grad[1]:
            partial_TC = _weight_gradient(cells_MSSC, grad_MSSC, table_MBB).sum(dim=0)
            grad_weight = partial_TC.t().reshape(weight.shape).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_MSSC.sum(dim=(0, 1, 2))
        return grad_cells, grad_weight, grad_bias, None


def _by_tap(weight: Tensor) -> Tensor:
    """``(T, C)``, so that neighbouring channels lie side by side as they do in the features."""
    return weight.flatten(1).t().contiguous()


@torch.library.custom_op(
    "mmconvnextv2::convolve_visible",
    mutates_args=(),
    schema="(Tensor cells_MSSC, Tensor weight_TC, Tensor? bias, Tensor table_MBB) -> Tensor",
)
def _convolve(
    cells_MSSC: Tensor, weight_TC: Tensor, bias: Tensor | None, table_MBB: Tensor
) -> Tensor:
    result_MSSC = cells_MSSC.new_empty(cells_MSSC.shape)
    side, channels = cells_MSSC.shape[2:]
    num_positions = cells_MSSC.numel() // channels
    block_c = _channel_block(channels)
    block_p = min(BLOCK_SIZE // block_c, MAX_BLOCK_POSITIONS)
    with torch.cuda.device_of(cells_MSSC):
        _convolve_kernel[triton.cdiv(num_positions, block_p), triton.cdiv(channels, block_c)](
            cells_MSSC,
            weight_TC,
            bias,
            table_MBB,
            result_MSSC,
            num_positions,
            C=channels,
            S=side,
            K=table_MBB.shape[1] - side + 1,
            SUM_DTYPE=_sum_dtype(cells_MSSC),
            BLOCK_P=block_p,
            BLOCK_C=block_c,
        )
    return result_MSSC


@_convolve.register_fake
def _(cells_MSSC: Tensor, weight_TC: Tensor, bias: Tensor | None, table_MBB: Tensor) -> Tensor:
    return torch.empty_like(cells_MSSC)


@torch.library.custom_op(
    "mmconvnextv2::convolve_visible_weight_gradient",
    mutates_args=(),
    schema="(Tensor cells_MSSC, Tensor grad_MSSC, Tensor table_MBB) -> Tensor",
)
def _weight_gradient(cells_MSSC: Tensor, grad_MSSC: Tensor, table_MBB: Tensor) -> Tensor:
    """Partial sums ``(R, T, C)``, one for each of R runs of positions."""
    side, channels = cells_MSSC.shape[2:]
    num_positions = cells_MSSC.numel() // channels
    block_c = _channel_block(channels)
    partial_RTC = _empty_partial_sums(cells_MSSC, grad_MSSC, table_MBB)
    num_runs, num_taps, _ = partial_RTC.shape
    with torch.cuda.device_of(cells_MSSC):
        _weight_gradient_kernel[num_runs, triton.cdiv(channels, block_c)](
            cells_MSSC,
            grad_MSSC,
            table_MBB,
            partial_RTC,
            num_positions,
            C=channels,
            S=side,
            K=table_MBB.shape[1] - side + 1,
            SUM_DTYPE=_sum_dtype(cells_MSSC),
            RUN_LENGTH=_run_length(num_positions, channels),
            BLOCK_T=triton.next_power_of_2(num_taps),
            BLOCK_C=block_c,
        )
    return partial_RTC


@_weight_gradient.register_fake
def _empty_partial_sums(cells_MSSC: Tensor, grad_MSSC: Tensor, table_MBB: Tensor) -> Tensor:
    side, channels = cells_MSSC.shape[2:]
    num_positions = cells_MSSC.numel() // channels
    num_runs = triton.cdiv(num_positions, _run_length(num_positions, channels))
    num_taps = (table_MBB.shape[1] - side + 1) ** 2
    dtype = torch.promote_types(cells_MSSC.dtype, torch.float32)
    return cells_MSSC.new_empty(num_runs, num_taps, channels, dtype=dtype)


_ops = torch.ops.mmconvnextv2


@register_flop_formula([_ops.convolve_visible, _ops.convolve_visible_weight_gradient])
def _flops(cells_shape: tuple[int, ...], *others: tuple[int, ...], **_: object) -> int:
    kernel_size = others[-1][1] - cells_shape[1] + 1
    return 2 * math.prod(cells_shape) * kernel_size**2


def _channel_block(channels: int) -> int:
    """Channels of a program: as many as leave the fewest of its lanes idle."""
    return min((64, 32, 16), key=lambda block: triton.cdiv(channels, block) * block)


def _run_length(num_positions: int, channels: int) -> int:
    """Positions of a program, a power of two: masks of unequal counts share a compilation."""
    max_runs = max(1, WEIGHT_PROGRAMS // triton.cdiv(channels, _channel_block(channels)))
    return triton.next_power_of_2(triton.cdiv(num_positions, max_runs))


def _sum_dtype(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


# The channels are constants of the kernels, one compilation for each width of the network: whether
# 40 channels may be read in whole vectors is only known then. The number of positions may change
# with every mask and must not compile anything again.


@triton.jit(do_not_specialize=["num_positions"])
def _convolve_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    table_ptr: tl.tensor,
    result_ptr: tl.tensor,
    num_positions: tl.tensor,
    C: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One block of positions and channels of the result."""
    position_P = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists_P = position_P < num_positions
    exists_C = channel_C < C
    window_P = table_ptr + _window(position_P, S, K)
    sum_PC = tl.zeros((BLOCK_P, BLOCK_C), dtype=SUM_DTYPE)
    for i in range(K):
        for j in tl.static_range(K):
            row_P = tl.load(window_P + i * (S + K - 1) + j, mask=exists_P, other=-1)
            w_C = tl.load(weight_ptr + (i * K + j) * C + channel_C, mask=exists_C, other=0)
            x_PC = tl.load(
                x_ptr + row_P.to(tl.int64)[:, None] * C + channel_C[None, :],
                mask=(row_P >= 0)[:, None] & exists_C[None, :],
                other=0,
            )
            sum_PC += x_PC.to(SUM_DTYPE) * w_C.to(SUM_DTYPE)[None, :]
    if bias_ptr is not None:
        bias_C = tl.load(bias_ptr + channel_C, mask=exists_C, other=0)
        sum_PC += bias_C.to(SUM_DTYPE)[None, :]
    tl.store(
        result_ptr + position_P[:, None] * C + channel_C[None, :],
        sum_PC.to(result_ptr.dtype.element_ty),
        mask=exists_P[:, None] & exists_C[None, :],
    )


@triton.jit(do_not_specialize=["num_positions"])
def _weight_gradient_kernel(
    x_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    table_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    num_positions: tl.tensor,
    C: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
    RUN_LENGTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Sums of one run of positions: all taps, one block of channels."""
    run = tl.program_id(0).to(tl.int64)
    tap_T = tl.arange(0, BLOCK_T)
    channel_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists_T = tap_T < K * K
    exists_C = channel_C < C
    step_T = tap_T // K * (S + K - 1) + tap_T % K
    sum_TC = tl.zeros((BLOCK_T, BLOCK_C), dtype=SUM_DTYPE)
    for i in range(RUN_LENGTH):
        position = run * RUN_LENGTH + i
        exists = position < num_positions
        row_T = tl.load(
            table_ptr + _window(position, S, K) + step_T, mask=exists_T & exists, other=-1
        )
        x_TC = tl.load(
            x_ptr + row_T.to(tl.int64)[:, None] * C + channel_C[None, :],
            mask=(row_T >= 0)[:, None] & exists_C[None, :],
            other=0,
        )
        grad_C = tl.load(grad_ptr + position * C + channel_C, mask=exists_C & exists, other=0)
        sum_TC += x_TC.to(SUM_DTYPE) * grad_C.to(SUM_DTYPE)[None, :]
    tl.store(
        partial_ptr + (run * K * K + tap_T)[:, None] * C + channel_C[None, :],
        sum_TC,
        mask=exists_T[:, None] & exists_C[None, :],
    )


@triton.jit
def _window(position: tl.tensor, S: tl.constexpr, K: tl.constexpr) -> tl.tensor:
    """Where in the table the window of a position starts."""
    B: tl.constexpr = S + K - 1
    return position // (S * S) * (B * B) + position // S % S * B + position % S
