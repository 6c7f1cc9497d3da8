"""Memory of a training step, split into what stays and what a step needs on top."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.profiler import profile
from torch.optim import Optimizer

from mmconvnextv2.benchmark.measure import synchronize


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step.

    Attributes:
        parameters: parameters and buffers.
        gradients: one for each trained parameter.
        optimizer: the optimizer's state.
        activations: what the allocator hands out on top of these, at the peak of a step whose
            gradients exist from the start.
        saved: the part of the activations that autograd keeps from forward to backward.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    saved: int


def measure_memory(
    call: Callable[[], Any], module: nn.Module, optimizer: Optimizer | None, device: torch.device
) -> Memory:
    """Measure one step; the one before must have left its gradients and optimizer state.

    Args:
        call: a step that keeps the gradients' memory.
        module: what it trains.
        optimizer: what it trains with, if its step is part of the call.
        device: where it runs.
    """
    lasting = [*module.parameters(), *module.buffers()]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    states = optimizer.state.values() if optimizer is not None else ()
    state = [v for entries in states for v in entries.values() if isinstance(v, Tensor)]
    with saved_tensors(lasting) as saved:
        activations = peak_bytes(call, device)
    kept = sum(saved.values())
    return Memory(_bytes(lasting), _bytes(gradients), _bytes(state), activations, kept)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a call needs at its peak, on top of those in use before it.

    On a GPU torch's allocator keeps count. On a CPU its profiler reports every allocation, and
    the peak of their running sum is taken; what a library allocates by itself is not seen.
    """
    # What waits for the garbage collector must not be freed during the call.
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Without a GPU driver the profiler prints an error about devices that nobody asked for.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(profile_memory=True) as run:
        call()
    changes = [event for event in run.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@contextmanager
def saved_tensors(lasting: Iterable[Tensor] = ()) -> Iterator[dict[int, int]]:
    """Within it, what autograd keeps for backward passes is noted.

    Args:
        lasting: tensors that exist anyway, such as parameters, and do not count.

    Yields:
        Bytes by address, filled as tensors are kept. Each storage stands there once, however many
        tensors share it: what is kept stays in memory, so addresses tell storages apart.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in lasting}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
