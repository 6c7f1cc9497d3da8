"""The floor of a step: its matrix products alone, at the same shapes.

Nothing that trains with these products can be faster than they are, so step / floor tells how
much of the time goes into everything else. Convolutions are not products here, attention is (its
fused kernels are taken apart while a step is recorded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten
_PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    _aten.mm: torch.mm,
    _aten.addmm: torch.addmm,
    _aten.addmm_: torch.addmm,
    _aten.bmm: torch.bmm,
    _aten.baddbmm: torch.baddbmm,
    _aten.baddbmm_: torch.baddbmm,
}


@dataclass(frozen=True)
class Operand:
    """Shape, strides and type of a factor; a transposed factor takes another time than a plain one.

    Attributes:
        shape: its sizes.
        stride: its strides, in elements.
        dtype: its type.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def draw(self, device: torch.device) -> Tensor:
        """A random tensor of this kind; one that is expanded stays so."""
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return torch.randn(last + 1, device=device, dtype=self.dtype).as_strided(
            self.shape, self.stride
        )


@dataclass(frozen=True)
class Product:
    """One matrix product.

    Attributes:
        function: name of the function of torch: mm, addmm, bmm or baddbmm.
        operands: what it was called with.
    """

    function: str
    operands: tuple[Operand, ...]

    @property
    def flops(self) -> int:
        """Multiply-accumulates."""
        left, right = self.operands[-2:]
        batch = left.shape[0] if len(left.shape) == 3 else 1
        return batch * left.shape[-2] * left.shape[-1] * right.shape[-1]


class ProductRecorder(TorchDispatchMode):
    """Within it, every matrix product is noted, those of custom autograd functions included.

    Attributes:
        products: what was computed, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note a product and run any operation."""
        function = _PRODUCTS.get(func.overloadpacket)
        if function is not None and all(tensor.numel() for tensor in _tensors(args)):
            operands = tuple(
                Operand(tuple(t.shape), tuple(t.stride()), t.dtype) for t in _tensors(args)
            )
            self.products.append(Product(function.__name__, operands))
        return func(*args, **(kwargs or {}))


def count_operations(call: Callable[[], Any]) -> tuple[int, list[Product]]:
    """Multiply-accumulates and matrix products of one call.

    Convolutions and matrix products are counted, the operations inside a library's or our own
    compiled kernels are not.
    """
    formulas = {_aten.convolution_backward: _convolution_backward_flops}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with sdpa_kernel(SDPBackend.MATH), counter, ProductRecorder() as recorder:
        call()
    # torch counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2, recorder.products


class Replay:
    """Compute recorded products again, and nothing else, each call.

    Factors of one kind are drawn once and shared by all products of that kind: a copy for each
    would need the memory of the whole step.

    Args:
        products: what to compute.
        device: where.
    """

    def __init__(self, products: Sequence[Product], device: torch.device) -> None:
        kinds = {operand for product in products for operand in product.operands}
        drawn = {kind: kind.draw(device) for kind in sorted(kinds, key=repr)}
        self._calls = [
            (getattr(torch, product.function), [drawn[kind] for kind in product.operands])
            for product in products
        ]

    def __call__(self) -> None:
        """Compute all of them, each result thrown away."""
        with torch.no_grad():
            for function, operands in self._calls:
                function(*operands)


def _convolution_backward_flops(
    gradient: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """FLOPs of a convolution's two gradients, from shapes.

    Torch's own formula forgets the groups, and charges a depthwise convolution C times too much.
    """
    positions = math.prod((x if transposed else gradient)[2:])
    products = x[0] * positions * math.prod(weight)
    return 2 * products * sum(output_mask[:2])


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]
