"""Kernels in C++ for training on a CPU in float32, compiled at their first use (some seconds).

PyTorch's own operations compute the same, several times slower; they stay in `nn.depthwise` and
`nn.mlp` as the reference, and run where no compiler is at hand.

Shape suffixes: N images, R rows (visible positions of all images), P positions of an image, C and K
channels.
"""

from __future__ import annotations

import ctypes
import functools
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mmconvnextv2.nn.eager import is_eager_on_cpu
from mmconvnextv2.nn.native.compiler import CompilationError, compile_library

KERNEL_SIZE = 7
RUNS = (8, 7, 4, 2, 1)
"""Numbers of neighbouring outputs that are computed together."""


def can_run(*tensors: Tensor) -> bool:
    """Whether the kernels apply to these tensors, and are there."""
    suits = all(x.dtype == torch.float32 and is_eager_on_cpu(x) for x in tensors)
    return suits and library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning, where they cannot be compiled."""
    try:
        return compile_library(Path(__file__).with_name("kernels.cpp"))
    except CompilationError as error:
        warnings.warn(
            f"training on the CPU takes the slower way, through PyTorch's own operations: {error}",
            stacklevel=2,
        )
        return None


@torch.library.custom_op(
    "mmconvnextv2::depthwise_rows",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor rows_RC, Tensor weight, Tensor? bias, Tensor offsets, Tensor? positions, "
    "int height, int width, int run, bool flip) -> Tensor",
)
def depthwise_rows(
    rows_RC: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    positions: Tensor | None,
    height: int,
    width: int,
    run: int,
    flip: bool,
) -> Tensor:
    """Depthwise convolution of visible positions, as if the others held zeros.

    Args:
        rows_RC: ``(R, C)``, sorted by image.
        weight: ``(C, 1, 7, 7)``.
        bias: ``(C,)``, or None.
        offsets: int64 ``(N + 1,)``, the rows of image n are ``offsets[n]`` to ``offsets[n+1] - 1``.
        positions: int64 ``(R,)``, each row's place in the flat map ``(N, H, W)``; None where every
            position is visible.
        height: H.
        width: W.
        run: one of `RUNS`; the rows come in groups of so many neighbours along W.
        flip: turn the kernel by 180 degrees, for the gradient of the input.

    Returns:
        ``(R, C)``.
    """
    out_RC = torch.empty_like(rows_RC)
    _call(
        "depthwise_convolve",
        *(rows_RC, weight, bias, out_RC, offsets, positions),
        *(len(offsets) - 1, height, width, rows_RC.shape[1]),
        *(ctypes.c_int(run), ctypes.c_int(flip)),
    )
    return out_RC


@torch.library.custom_op(
    "mmconvnextv2::depthwise_rows_grad",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor rows_RC, Tensor grad_RC, Tensor offsets, Tensor? positions, "
    "int height, int width, int run) -> Tensor",
)
def depthwise_rows_grad(
    rows_RC: Tensor,
    grad_RC: Tensor,
    offsets: Tensor,
    positions: Tensor | None,
    height: int,
    width: int,
    run: int,
) -> Tensor:
    """Gradients of kernel and bias of `depthwise_rows`.

    Args:
        rows_RC: its input.
        grad_RC: gradient of its output.
        offsets: as there.
        positions: as there.
        height: H.
        width: W.
        run: as there.

    Returns:
        ``(50, C)``: 49 taps, row by row, and the bias.
    """
    images, channels = len(offsets) - 1, rows_RC.shape[1]
    partial = rows_RC.new_empty(images, KERNEL_SIZE**2 + 1, channels)
    _call(
        "depthwise_weight_gradient",
        *(rows_RC, grad_RC, partial, offsets, positions),
        *(images, height, width, channels, ctypes.c_int(run)),
    )
    return partial.sum(dim=0)


@torch.library.custom_op(
    "mmconvnextv2::gelu_square_sum",
    mutates_args=("out_NPK",),
    device_types="cpu",
    schema="(Tensor hidden_NPK, Tensor bias_K, Tensor(a!) out_NPK) -> Tensor",
)
def gelu_square_sum(hidden_NPK: Tensor, bias_K: Tensor, out_NPK: Tensor) -> Tensor:
    """``gelu(hidden + bias)``, and the sum of its squares over the positions of an image.

    Args:
        hidden_NPK: ``(N, P, K)``.
        bias_K: ``(K,)``.
        out_NPK: contiguous, receives the GELU.

    Returns:
        ``(N, K)``.
    """
    squares_NK = hidden_NPK.new_empty(hidden_NPK.shape[0], hidden_NPK.shape[2])
    _call("gelu_forward", hidden_NPK, bias_K, out_NPK, squares_NK, *hidden_NPK.shape)
    return squares_NK


@torch.library.custom_op(
    "mmconvnextv2::gelu_again",
    mutates_args=("out_NPK", "slope_NPK", "scaled_NPK"),
    device_types="cpu",
    schema="(Tensor hidden_NPK, Tensor bias_K, Tensor factor_NK, Tensor shift_K, "
    "Tensor(a!) out_NPK, Tensor(b!) slope_NPK, Tensor(c!) scaled_NPK) -> ()",
)
def gelu_again(
    hidden_NPK: Tensor,
    bias_K: Tensor,
    factor_NK: Tensor,
    shift_K: Tensor,
    out_NPK: Tensor,
    slope_NPK: Tensor,
    scaled_NPK: Tensor,
) -> None:
    """What the backward pass needs of ``gelu(hidden + bias)``, all of it computed again.

    Args:
        hidden_NPK: ``(N, P, K)``.
        bias_K: ``(K,)``.
        factor_NK: ``(N, K)``.
        shift_K: ``(K,)``.
        out_NPK: contiguous, receives the GELU.
        slope_NPK: contiguous, receives its derivative.
        scaled_NPK: contiguous, receives ``gelu * factor + shift``.
    """
    operands = (hidden_NPK, bias_K, factor_NK, shift_K, out_NPK, slope_NPK, scaled_NPK)
    _call("gelu_again", *operands, *hidden_NPK.shape)


@torch.library.custom_op(
    "mmconvnextv2::product_sum",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor a_NPK, Tensor b_NPK) -> Tensor",
)
def product_sum(a_NPK: Tensor, b_NPK: Tensor) -> Tensor:
    """Sum of ``a * b`` over the positions of an image.

    Args:
        a_NPK: ``(N, P, K)``.
        b_NPK: ``(N, P, K)``.

    Returns:
        ``(N, K)``.
    """
    sums_NK = a_NPK.new_empty(a_NPK.shape[0], a_NPK.shape[2])
    _call("product_sum", a_NPK, b_NPK, sums_NK, *a_NPK.shape)
    return sums_NK


@torch.library.custom_op(
    "mmconvnextv2::gelu_grn_grad",
    mutates_args=("slope_NPK",),
    device_types="cpu",
    schema="(Tensor grad_NPK, Tensor gelu_NPK, Tensor factor_NK, Tensor through_NK, "
    "Tensor(a!) slope_NPK) -> Tensor",
)
def gelu_grn_grad(
    grad_NPK: Tensor, gelu_NPK: Tensor, factor_NK: Tensor, through_NK: Tensor, slope_NPK: Tensor
) -> Tensor:
    """Gradient of a GELU's input, ``(grad * factor + gelu * through) * slope``.

    Args:
        grad_NPK: ``(N, P, K)``.
        gelu_NPK: ``(N, P, K)``.
        factor_NK: ``(N, K)``.
        through_NK: ``(N, K)``.
        slope_NPK: contiguous, the GELU's derivative, receives the gradient.

    Returns:
        The gradient's sum over positions, ``(N, K)``.
    """
    sums_NK = torch.empty_like(factor_NK)
    operands = (grad_NPK, gelu_NPK, factor_NK, through_NK, slope_NPK, sums_NK)
    _call("gelu_backward", *operands, *grad_NPK.shape)
    return sums_NK


def _call(name: str, *arguments: Tensor | int | ctypes.c_int | None) -> None:
    compiled = library()
    assert compiled is not None, "callers ask can_run first"
    # Contiguous copies must outlive the call.
    arguments = tuple(x.contiguous() if isinstance(x, Tensor) else x for x in arguments)
    getattr(compiled, name)(*map(_as_c, arguments))


def _as_c(argument: Tensor | int | ctypes.c_int | None) -> object:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_int64(argument) if isinstance(argument, int) else argument


_ops = torch.ops.mmconvnextv2


@register_flop_formula([_ops.depthwise_rows, _ops.depthwise_rows_grad])
def _flops(rows_shape: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * math.prod(rows_shape) * KERNEL_SIZE**2
