"""Time and memory of a whole run, from one measured step and the recipe's schedule.

Measured is one iteration: its seconds, and the memory that it needs on top of what lasts. All else
is arithmetic, and a `Plan` says which of its figures are which. An iteration is one batch in every
process; `accumulation` of them make one step of the optimizer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Schedule:
    """How long a recipe trains: for `epochs`, or for `max_iterations` of an endless sampler.

    Attributes:
        per_device: images in one batch of one process.
        accumulation: iterations whose gradients are summed before a step of the optimizer.
        epochs: passes over the images.
        max_iterations: iterations, however many processes there are.
        drop_last: leave out the last batch of an epoch where it is smaller.

    Raises:
        ValueError: a number is smaller than 1, or not exactly one of the two lengths is given.
    """

    per_device: int
    accumulation: int = 1
    epochs: int | None = None
    max_iterations: int | None = None
    drop_last: bool = True

    def __post_init__(self) -> None:
        for name in ("per_device", "accumulation", "epochs", "max_iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if (self.epochs is None) == (self.max_iterations is None):
            raise ValueError(
                f"a schedule has either epochs or max_iterations, got epochs={self.epochs} and "
                f"max_iterations={self.max_iterations}"
            )

    def length(self, processes: int, num_images: int | None = None) -> Length:
        """Count the iterations, the steps of the optimizer and the images of a whole run.

        In an epoch each process gets ``ceil(num_images / processes)`` images: samplers repeat a few
        so that all get equally many.

        Args:
            processes: number of processes.
            num_images: images of the training set; a schedule in iterations does not need it.

        Raises:
            ValueError: there are no processes or no images, or too few for one batch each.
        """
        if processes < 1:
            raise ValueError(f"the number of processes must be at least 1, got {processes}")
        if self.epochs is None:
            iterations = self.max_iterations or 0
            images = iterations * processes * self.per_device
        else:
            if num_images is None or num_images < 1:
                raise ValueError(f"the training set needs at least one image, got {num_images}")
            share = math.ceil(num_images / processes)
            if self.drop_last:
                share -= share % self.per_device
            if share == 0:
                raise ValueError(
                    f"{num_images} images do not fill one batch of {self.per_device} in each of "
                    f"{processes} processes"
                )
            iterations = self.epochs * math.ceil(share / self.per_device)
            images = self.epochs * processes * share
        # The last iteration of a run always updates.
        return Length(iterations, math.ceil(iterations / self.accumulation), images)


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        iterations: batches of each process.
        updates: steps of the optimizer.
        images: images seen by all processes together.
    """

    iterations: int
    updates: int
    images: int


@dataclass(frozen=True)
class Measurement:
    """One measured iteration of one process alone.

    Attributes:
        seconds: what it takes.
        batch: its images.
        activations: bytes at its peak, on top of parameters, gradients and optimizer state; None
            where they were not measured.

    Raises:
        ValueError: the seconds are not positive, or the batch is smaller than 1.
    """

    seconds: float
    batch: int
    activations: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"a step must take more than 0 seconds, got {self.seconds}")
        if self.batch < 1:
            raise ValueError(f"the measured batch must be at least 1, got {self.batch}")


@dataclass(frozen=True)
class LastingMemory:
    """Bytes that a process keeps from iteration to iteration.

    Attributes:
        parameters: parameters and buffers.
        gradients: one for each trained parameter.
        optimizer: the optimizer's state.
        averaged: a second copy of the model, where weights are averaged.
    """

    parameters: int
    gradients: int
    optimizer: int
    averaged: int = 0

    def total(self, processes: int = 1) -> int:
        """All of them; of several processes each holds its gradients a second time.

        DistributedDataParallel exchanges gradients in buckets of its own.
        """
        buckets = self.gradients if processes > 1 else 0
        return self.parameters + self.gradients + buckets + self.optimizer + self.averaged


@dataclass(frozen=True)
class Plan:
    """What a run with so many processes takes.

    Attributes:
        processes: number of processes.
        length: how long the run is.
        iteration_seconds: seconds of one iteration.
        measured: `iteration_seconds` and the activations in `memory` are as measured, and not
            extrapolated to another batch or to several processes. `seconds` is always extrapolated.
        seconds: of all iterations; validation, checkpoints and stalls come on top.
        images_per_second: of all processes together.
        memory: bytes of each process at its peak; None where activations were not measured.
    """

    processes: int
    length: Length
    iteration_seconds: float
    measured: bool
    seconds: float
    images_per_second: float
    memory: int | None


def make_plan(
    schedule: Schedule,
    measurement: Measurement,
    lasting: LastingMemory,
    processes: int = 1,
    num_images: int | None = None,
    efficiency: float = 1.0,
) -> Plan:
    """Extrapolate one measured iteration to a whole run.

    Time and activations are taken as proportional to the images of a batch.

    Args:
        schedule: how long the recipe trains.
        measurement: one iteration of one process.
        lasting: memory that does not depend on the batch.
        processes: number of processes.
        num_images: images of the training set; a schedule in iterations does not need it.
        efficiency: how fast each of several processes is, compared with one alone; 1 is the
            perfect scaling that nothing exceeds.

    Raises:
        ValueError: the efficiency is not in (0, 1], or the schedule does not fit the images.
    """
    check_efficiency(efficiency)
    length = schedule.length(processes, num_images)
    scale = schedule.per_device / measurement.batch
    seconds = measurement.seconds * scale / (efficiency if processes > 1 else 1)
    memory = None
    if measurement.activations is not None:
        memory = lasting.total(processes) + round(measurement.activations * scale)
    return Plan(
        processes=processes,
        length=length,
        iteration_seconds=seconds,
        measured=processes == 1 and scale == 1,
        seconds=seconds * length.iterations,
        images_per_second=processes * schedule.per_device / seconds,
        memory=memory,
    )


def check_efficiency(efficiency: float) -> None:
    """Check how fast each of several processes is said to be, compared with one alone.

    Raises:
        ValueError: it is not in (0, 1].
    """
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency must be more than 0 and at most 1, got {efficiency}")


def median_of_rounds(seconds: Sequence[float], length: int) -> float:
    """Median over rounds of the mean iteration of a round.

    Iterations differ in a rhythm: one of `accumulation` steps the optimizer, and one of as many as
    there are workers waits where the loader is too slow. A median of single iterations would miss
    them; one over rounds that hold all of it ignores a stray checkpoint alone.

    Args:
        seconds: of consecutive iterations; what does not fill a round is left out.
        length: iterations of a round.

    Raises:
        ValueError: there is no whole round.
    """
    rounds = range(0, len(seconds) - length + 1, length)
    if length < 1 or not rounds:
        raise ValueError(f"{len(seconds)} iterations hold no round of {length}")
    return statistics.median(statistics.fmean(seconds[i : i + length]) for i in rounds)


def lasting_memory(
    module: nn.Module, optimizer_state: int, averaged: bool = False
) -> LastingMemory:
    """Count what a model keeps in memory, from shapes and types alone.

    Args:
        module: the model; its tensors may be fake.
        optimizer_state: bytes of the optimizer's state.
        averaged: whether averaged weights are kept as well.
    """
    model = _bytes([*module.parameters(), *module.buffers()])
    return LastingMemory(model, trained_bytes(module), optimizer_state, model if averaged else 0)


def trained_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that are trained."""
    return _bytes(p for p in module.parameters() if p.requires_grad)


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's state, complete after its first step."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return _bytes(value for value in values if isinstance(value, Tensor))


def state_copies(make_optimizer: Callable[[list[nn.Parameter]], Optimizer]) -> int:
    """How many copies of the trained parameters an optimizer keeps as its state: two for AdamW.

    Args:
        make_optimizer: builds the optimizer over some parameters; one small one is stepped.
    """
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer([parameter])
    optimizer.step()
    # Counters of steps are negligible.
    return state_bytes(optimizer) // _bytes([parameter])


def format_seconds(seconds: float) -> str:
    """Seconds in units that are read at a glance: 0.212 s, 3 min 20 s, 5 h 10 min, 3.2 days."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    for unit, name, part, part_name in ((3600, "h", 60, "min"), (60, "min", 1, "s")):
        parts = round(seconds / part)
        if parts * part >= unit:
            return f"{parts * part // unit} {name} {parts * part % unit // part} {part_name}"
    return f"{seconds:.3g} s"


def format_bytes(count: int) -> str:
    """Bytes in GB of a thousand million, or in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
