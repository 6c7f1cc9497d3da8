"""Sums over the visible cells of each image, and the reverse, deterministic on every device.

Each is the other's derivative. Plain indexing would do, but its backward pass on a GPU adds with
atomics in an order that changes from run to run.

Shape suffixes: N batch, M visible cells, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sum_per_image(x_MC: Tensor, offsets: Tensor) -> Tensor:
    """Sum the rows of each image: ``(M, C)`` to ``(N, C)``.

    Args:
        x_MC: one row a visible cell, sorted by image.
        offsets: ``(N + 1,)`` as in `VisibleCells`.
    """
    # segment_reduce adds in the dtype of its input, which loses per cents in bfloat16. The
    # conversion stands outside the function: inside, where it changes nothing, a compiled call
    # mistakes the result for the input and returns a wrong gradient (torch 2.11).
    wide_MC = x_MC.to(torch.promote_types(x_MC.dtype, torch.float32)).contiguous()
    return _SumPerImage.apply(wide_MC, offsets).to(x_MC.dtype)


def repeat_per_cell(x_NC: Tensor, offsets: Tensor, num_cells: int) -> Tensor:
    """Repeat each image's row once a visible cell: ``(N, C)`` to ``(M, C)``.

    Args:
        x_NC: one row an image.
        offsets: ``(N + 1,)`` as in `VisibleCells`.
        num_cells: M, given as an integer so that nothing has to be read back from the device.
    """
    return _RepeatPerCell.apply(x_NC, offsets, num_cells)


def _sum(x_MC: Tensor, offsets: Tensor) -> Tensor:
    return torch.segment_reduce(x_MC, "sum", offsets=offsets, axis=0)


def _repeat(x_NC: Tensor, offsets: Tensor, num_cells: int) -> Tensor:
    return x_NC.repeat_interleave(offsets.diff(), dim=0, output_size=num_cells)


class _SumPerImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MC: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        ctx.num_cells = x_MC.shape[0]
        return _sum(x_MC, offsets)

    @staticmethod
    def backward(ctx: Any, grad_NC: Tensor) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        return repeat_per_cell(grad_NC, offsets, ctx.num_cells), None


class _RepeatPerCell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, offsets: Tensor, num_cells: int) -> Tensor:
        ctx.save_for_backward(offsets)
        return _repeat(x_NC, offsets, num_cells)

    @staticmethod
    def backward(ctx: Any, grad_MC: Tensor) -> tuple[Tensor, None, None]:
        (offsets,) = ctx.saved_tensors
        return sum_per_image(grad_MC, offsets), None, None
