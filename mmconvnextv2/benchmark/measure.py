"""Time alternatives side by side: interleaved, warmed up, as medians with quartiles."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds that one call takes.

    Attributes:
        samples: one mean a round, over `calls` calls in a row.
        calls: calls of one sample.
    """

    samples: tuple[float, ...]
    calls: int = 1

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        lower, _, upper = statistics.quantiles(self.samples, n=4, method="inclusive")
        return lower, upper


def measure(
    calls: Mapping[str, Callable[[], Any]],
    *,
    repeat: int = 5,
    warmup: int = 1,
    min_seconds: float = 0.0,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_sample: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Time every alternative `repeat` times, in turns.

    A machine's speed drifts while it is measured. In turns, each round sees all alternatives in
    the same minute, and each round starts with another one, so that none always follows the same
    neighbour. Garbage is collected between rounds and never inside one.

    Args:
        calls: what to time, by name.
        repeat: rounds that count.
        warmup: rounds before them that do not.
        min_seconds: a sample repeats a call until it lasts about as long, judged by the last
            round of the warm-up (without one, a sample is one call).
        device: device that is waited for at both ends of a sample.
        clock: returns seconds.
        on_sample: told the name after every sample, for a progress display.

    Raises:
        ValueError: `repeat` is less than 1 or `warmup` negative.
    """
    if repeat < 1 or warmup < 0:
        raise ValueError(f"repeat must be at least 1 and warmup 0, got {repeat} and {warmup}")
    names = list(calls)
    number = dict.fromkeys(names, 1)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-warmup, repeat):
        with _no_garbage_collection():
            for name in _rotate(names, i):
                seconds = _sample(calls[name], number[name], device, clock)
                if i >= 0:
                    samples[name].append(seconds)
                elif i == -1 and seconds > 0:
                    number[name] = max(1, math.ceil(min_seconds / seconds))
                on_sample(name)
    return {name: Timing(tuple(samples[name]), number[name]) for name in names}


def synchronize(device: torch.device | None) -> None:
    """Wait until a device has done its work; a CPU always has."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _sample(
    call: Callable[[], Any], number: int, device: torch.device | None, clock: Callable[[], float]
) -> float:
    synchronize(device)
    start = clock()
    for _ in range(number):
        call()
    synchronize(device)
    return (clock() - start) / number


def _rotate(names: list[str], by: int) -> list[str]:
    start = by % len(names) if names else 0
    return names[start:] + names[:start]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
