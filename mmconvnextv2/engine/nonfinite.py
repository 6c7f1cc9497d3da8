"""Repeats a forward pass exactly, to find where it stops being finite."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

RandomState = dict[str, Any]
"""What `read_random_state` returns."""


def read_random_state() -> RandomState:
    """Read the global generators of Python, NumPy, torch and, once it is in use, the current GPU.

    Returns:
        Tensors and plain containers, so that a saved state loads under ``weights_only=True``.
    """
    numpy_state = np.random.get_state(legacy=False)
    words = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    numpy_state["state"] = dict(key=words, pos=int(numpy_state["state"]["pos"]))
    state = dict(python=random.getstate(), numpy=numpy_state, torch=torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: RandomState) -> None:
    """Put the global generators into a state that `read_random_state` has read.

    Args:
        state: the state; without "cuda" the GPU's generator stays as it is.
    """
    random.setstate(state["python"])
    numpy_state = dict(state["numpy"])
    words = numpy_state["state"]["key"].numpy().astype(np.uint32)
    numpy_state["state"] = dict(key=words, pos=numpy_state["state"]["pos"])
    np.random.set_state(numpy_state)
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


@dataclass
class Call:
    """One call of a model, with what is needed to repeat it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random_state: RandomState

    @property
    def input_is_finite(self) -> bool:
        """Whether every number that the model was given is finite."""
        return is_finite((self.args, self.kwargs))

    def repeat(self, model: nn.Module) -> Any:
        """Call the model again with the same inputs and the same random draws."""
        set_random_state(self.random_state)
        return model(*self.args, **self.kwargs)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the global generators back at the end of a `with` block."""
    state = read_random_state()
    try:
        yield
    finally:
        set_random_state(state)


def is_finite(value: Any) -> bool:
    """Whether all floating-point tensors in nested containers are finite."""
    return all(
        bool(leaf.isfinite().all())
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    )


def total_loss(losses: dict[str, Any]) -> Tensor:
    """Sum the entries that mmengine's `parse_losses` sums: those with "loss" in their name.

    Args:
        losses: tensors, or lists of tensors, by name.

    Returns:
        The scalar that training differentiates.
    """
    parts = [
        part.mean()
        for name, value in losses.items()
        if "loss" in name
        for part in (value if isinstance(value, list | tuple) else [value])
    ]
    return torch.stack([part.float() for part in parts]).sum()


def first_bad_output(model: nn.Module, forward: Callable[[], Any]) -> tuple[str | None, Any]:
    """Run a forward pass and find the first module whose output is not finite.

    An inner module ends before the one that holds it, so the innermost is named.

    Args:
        model: the model that `forward` calls; compiled parts of it run uncompiled here.
        forward: the pass.

    Returns:
        The module in words, None where all outputs are finite, and what `forward` returned.
    """
    found: list[str] = []

    def look_at(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if not found and not is_finite(output):
                found.append(f"'{name}' ({type(module).__name__})" if name else "the whole model")

        return look

    handles = [
        module.register_forward_hook(look_at(name)) for name, module in model.named_modules()
    ]
    try:
        with _uncompiled(model):
            output = forward()
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] if found else None), output


def first_bad_gradient(model: nn.Module, losses: dict[str, Any]) -> str | None:
    """Find the parameter whose gradient is the first, on the way back, that is not finite.

    The gradients that parameters hold are left alone, and no process is waited for.

    Args:
        model: the model.
        losses: what its forward pass returned.

    Returns:
        The name of the parameter, None where all gradients are finite.
    """
    found: list[str] = []

    def look_at(name: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if not found and not is_finite(gradient):
                found.append(name)

        return look

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    handles = [parameter.register_hook(look_at(name)) for name, parameter in trained.items()]
    try:
        # Not backward(): it would add to .grad and wake the hooks of DistributedDataParallel.
        torch.autograd.grad(total_loss(losses), list(trained.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Run modules that were compiled in place as they are written: only so do hooks see inside."""
    compiled = {
        module: module._compiled_call_impl
        for module in model.modules()
        if getattr(module, "_compiled_call_impl", None) is not None
    }
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, implementation in compiled.items():
            module._compiled_call_impl = implementation
