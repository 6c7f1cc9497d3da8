"""Compare candidates: build, check that they agree, look inside one step, time them in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

from mmconvnextv2.benchmark.floor import Product, Replay, count_operations
from mmconvnextv2.benchmark.measure import Timing, measure
from mmconvnextv2.benchmark.memory import Memory, measure_memory
from mmconvnextv2.benchmark.peers import LeftOut
from mmconvnextv2.benchmark.steps import TrainingStep

TOLERANCE = {"cpu": 1e-3, "cuda": 1e-2}
"""Relative error up to which two float32 outputs count as equal; GPUs convolve in TF32."""

BF16_TOLERANCE = 0.1
"""The same in bfloat16, whose rounding adds up over the blocks."""


@dataclass(frozen=True)
class Settings:
    """What all benchmarks take from the command line.

    Attributes:
        arch: name of an architecture.
        batch: images of a step.
        image_size: their side in pixels.
        device: where to run.
        dtype: precision of the forward pass.
        repeat: rounds that count.
        warmup: rounds before them.
        min_seconds: how long a sample lasts at least.
        seed: of weights, images and masks.
        compile: add candidates compiled by `torch.compile`.
        only: patterns of names, or of "group/name"; other candidates do not take part.
        progress: told what is going on, line by line.
    """

    arch: str = "atto"
    batch: int = 8
    image_size: int = 224
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    repeat: int = 5
    warmup: int = 1
    min_seconds: float = 0.1
    seed: int = 0
    compile: bool = False
    only: tuple[str, ...] = ()
    progress: Callable[[str], None] = lambda line: None

    @property
    def tolerance(self) -> float:
        """Relative error up to which two outputs count as equal."""
        return TOLERANCE[self.device.type] if self.dtype == torch.float32 else BF16_TOLERANCE

    def wants(self, group: str, name: str) -> bool:
        """Whether a candidate takes part: a pattern of `only` is its name or "group/name"."""
        names = (name, f"{group}/{name}")
        return not self.only or any(fnmatch(n, pattern) for pattern in self.only for n in names)


@dataclass(frozen=True)
class Candidate:
    """One alternative.

    Attributes:
        name: what tables call it.
        build: makes its step; raises `LeftOut` where it cannot.
        equals: the candidate whose output its own must equal, if both take part.
        ours: a part of this project that works everywhere, so that its failure is an error and
            no reason to leave it out.
        compiled: `torch.compile` is at work, which hides operations: FLOPs, products and saved
            tensors are those of the candidate that is not compiled.
    """

    name: str
    build: Callable[[], TrainingStep]
    equals: str | None = None
    ours: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class View:
    """What a look inside one step shows.

    Attributes:
        flops: multiply-accumulates.
        products: the matrix products.
        memory: bytes.
    """

    flops: int | None = None
    products: list[Product] | None = None
    memory: Memory | None = None


@dataclass
class Row:
    """What was measured of one candidate.

    Attributes:
        group: what it was compared in.
        name: the candidate.
        images: images of one call.
        time: seconds of a call.
        flops: multiply-accumulates of a call, of convolutions and matrix products.
        memory: bytes of a call.
        products: matrix products of a call.
        floor: seconds of these products alone.
        baseline: the candidate that `speedup` refers to.
        speedup: how many times as many images a second as the baseline.
        point: where in a sweep the row stands: its name, and the value there.
    """

    group: str
    name: str
    images: int
    time: Timing
    flops: int | None = None
    memory: Memory | None = None
    products: int | None = None
    floor: Timing | None = None
    baseline: str | None = None
    speedup: float | None = None
    point: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return dict(
            group=self.group,
            name=self.name,
            images=self.images,
            seconds=_timing(self.time),
            images_per_second=self.images / self.time.median,
            flops=self.flops,
            memory=None if self.memory is None else asdict(self.memory),
            matrix_products=self.products,
            floor_seconds=None if self.floor is None else _timing(self.floor),
            time_over_floor=None if self.floor is None else self.time.median / self.floor.median,
            baseline=self.baseline,
            speedup=self.speedup,
            point=self.point,
        )


@dataclass
class Comparison:
    """All that a benchmark found.

    Attributes:
        rows: what was measured.
        left_out: group, name and reason of each candidate that did not take part.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def extend(self, other: Comparison) -> None:
        """Add another comparison's findings."""
        self.rows += other.rows
        self.left_out += other.left_out


def compare(
    group: str,
    candidates: Sequence[Candidate],
    settings: Settings,
    baselines: Sequence[str] = (),
    look_inside: bool = True,
) -> Comparison:
    """Measure candidates side by side.

    Args:
        group: name of the comparison.
        candidates: who takes part; those that `settings.only` names.
        settings: how to measure.
        baselines: the first of them that took part is what speed-ups refer to.
        look_inside: also find FLOPs, memory and the floor.
    """
    _start_afresh(settings)
    wanted = [one for one in candidates if settings.wants(group, one.name)]
    steps, left_out = _prepare_all(group, wanted, settings)
    views = {
        one.name: _look_inside(steps[one.name], one.compiled)
        for one in wanted
        if one.name in steps and look_inside
    }
    replays = {
        f"{name}: products": Replay(view.products, settings.device)
        for name, view in views.items()
        if view.products
    }
    timings = measure(
        {**steps, **replays},
        repeat=settings.repeat,
        warmup=settings.warmup,
        min_seconds=settings.min_seconds,
        device=settings.device,
        on_sample=lambda name: settings.progress(f"{group}: timing {name}"),
    )
    found = Comparison(left_out=left_out)
    baseline = next((name for name in baselines if name in steps), None)
    for name in steps:
        view = views.get(name, View())
        row = Row(group, name, settings.batch, timings[name], view.flops, view.memory)
        row.products = None if view.products is None else len(view.products)
        row.floor = timings.get(f"{name}: products")
        if baseline is not None:
            row.baseline = baseline
            row.speedup = timings[baseline].median / timings[name].median
        found.rows.append(row)
    return found


def check_equal(output: Tensor, expected: Tensor, tolerance: float) -> None:
    """Check that two outputs differ in rounding alone.

    Raises:
        LeftOut: they have other shapes, or differ by more than the tolerance, in relative norm.
    """
    if output.shape != expected.shape:
        raise LeftOut(f"its output is {tuple(output.shape)}, not {tuple(expected.shape)}")
    output, expected = output.detach().double(), expected.detach().double()
    error = ((output - expected).norm() / expected.norm()).item()
    if not error <= tolerance:
        raise LeftOut(f"its output differs by {error:.1e} (relative norm), more than {tolerance:g}")


def _prepare_all(
    group: str, candidates: Sequence[Candidate], settings: Settings
) -> tuple[dict[str, TrainingStep], list[dict[str, str]]]:
    """The steps that run, by name, and what is left out with its reason."""
    steps: dict[str, TrainingStep] = {}
    outputs: dict[str, Tensor] = {}
    left_out = []
    for candidate in candidates:
        settings.progress(f"{group}: building {candidate.name}")
        try:
            steps[candidate.name] = _prepare(candidate, outputs, settings)
        except LeftOut as reason:
            left_out.append(dict(group=group, name=candidate.name, reason=str(reason)))
    return steps, left_out


def _prepare(candidate: Candidate, outputs: dict[str, Tensor], settings: Settings) -> TrainingStep:
    """Build, check the output, and run one step."""
    try:
        torch.manual_seed(settings.seed)
        step = candidate.build()
        torch.manual_seed(settings.seed)
        outputs[candidate.name] = step.output().detach()
        expected = outputs.get(candidate.equals or "")
        if expected is not None:
            check_equal(outputs[candidate.name], expected, settings.tolerance)
        step()
    except torch.cuda.OutOfMemoryError as error:
        raise LeftOut("it does not fit the GPU's memory") from error
    except LeftOut as error:
        if candidate.ours:
            raise RuntimeError(f"{candidate.name}: {error}") from error
        raise
    # What other people's code raises is not known beforehand, and must not cost the whole run.
    except Exception as error:
        if candidate.ours:
            raise
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise LeftOut(kind + " ".join(str(error).split())) from error
    return step


def _look_inside(step: TrainingStep, compiled: bool) -> View:
    """FLOPs, matrix products and memory of one step."""
    step.release_gradients = False
    flops, products = (None, None) if compiled else count_operations(step)
    memory = measure_memory(step, step.module, step.optimizer, step.device)
    step.release_gradients = True
    return View(flops, products, memory)


def _start_afresh(settings: Settings) -> None:
    """Give back what earlier comparisons used.

    That includes compiled code: its number is limited for each function, and a function that
    reached the limit runs uncompiled.
    """
    if settings.compile:
        torch.compiler.reset()
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()


def _timing(timing: Timing) -> dict[str, Any]:
    lower, upper = timing.quartiles
    return dict(
        median=timing.median,
        lower_quartile=lower,
        upper_quartile=upper,
        samples=list(timing.samples),
        calls_per_sample=timing.calls,
    )
