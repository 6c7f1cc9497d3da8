"""Hook that times an early part of a run and says how long all of it will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvnextv2.analysis.plan import (
    LastingMemory,
    format_bytes,
    format_seconds,
    lasting_memory,
    median_of_rounds,
    state_bytes,
)
from mmconvnextv2.benchmark.environment import cpu_name
from mmconvnextv2.benchmark.measure import synchronize
from mmconvnextv2.engine.learning_rate import BatchTerms, batch_terms

_LEAST_ROUNDS = 3
_WAITING_WORTH_A_WORD = 0.2
_GUESSED_FROM = 2
"""Iterations behind the first guess; the one before them also sets things up."""


@HOOKS.register_module()
class PlanHook(Hook):
    """Log, on rank 0, what an iteration takes and what follows for the whole run.

    The second and third iteration give a first guess, in one line. The plan comes once, later.

    What is logged as measured: seconds of an iteration, from the end of one to the end of the next,
    images a second of all processes, the terms of the batch, on a GPU the peak of memory; and the
    share of the time spent waiting for data where it is large. Extrapolated is the time until the
    run ends. A pause between iterations, for validation or the start of an epoch, belongs to none.

    The time is a median over rounds of iterations. A round holds all that comes in turns: every
    accumulated batch before a step of the optimizer, and a batch of every worker of the loader. A
    run that ends within the measurement has no plan.

    Args:
        warmup: iterations to leave out at the start, and after a resume.
        window: iterations to measure, rounded up to whole rounds, three at least.
        clock: returns seconds.

    Raises:
        ValueError: `warmup` is negative or `window` smaller than 1.
    """

    # Before LoggerHook, which resets the peak of memory.
    priority = "NORMAL"

    def __init__(
        self, warmup: int = 20, window: int = 50, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if warmup < 0 or window < 1:
            raise ValueError(
                f"PlanHook: warmup must be at least 0 and window 1, got {warmup} and {window}"
            )
        self.warmup = warmup
        self.window = window
        self._clock = clock
        self._measuring = False

    def before_train(self, runner: Runner) -> None:
        """Get ready, also after a resume.

        Raises:
            ValueError: the config says no batch size.
        """
        self._terms = batch_terms(runner.cfg, runner.world_size)
        workers = max(1, runner.train_dataloader.num_workers)
        self._round = math.lcm(self._terms.accumulation, workers)
        self._needed = self._round * max(_LEAST_ROUNDS, math.ceil(self.window / self._round))
        self._device = next(runner.model.parameters()).device
        self._to_skip = self.warmup
        self._first_ends: list[float] = []
        self._seconds: list[float] = []
        self._waits: list[float] = []
        self._peak = 0
        self._begin = 0.0
        self._last_end: float | None = None
        left = runner.max_iters - runner.iter
        self._measuring = is_main_process() and left > self.warmup + self._needed

    def before_train_epoch(self, runner: Runner) -> None:
        """The pause before an epoch belongs to no iteration."""
        self._last_end = None

    def before_val(self, runner: Runner) -> None:
        """Nor does a validation."""
        self._last_end = None

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Note when the batch is there."""
        if self._measuring:
            self._begin = self._clock()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Note what the iteration took, and log when there are enough of them."""
        guessing = is_main_process() and len(self._first_ends) <= _GUESSED_FROM
        if not (guessing or self._measuring):
            return
        synchronize(self._device)
        end = self._clock()
        if guessing:
            self._guess(runner, end)
        if not self._measuring:
            return
        start = self._begin if self._last_end is None else self._last_end
        self._last_end = end
        if self._to_skip > 0:
            self._to_skip -= 1
            return
        self._seconds.append(end - start)
        self._waits.append(self._begin - start)
        self._peak = max(self._peak, _peak_bytes(self._device))
        if len(self._seconds) == self._needed:
            self._measuring = False
            runner.logger.info("\n".join(self._report(runner)))

    def _guess(self, runner: Runner, end: float) -> None:
        """Note the end of one of the first iterations; say how long all take after the last."""
        self._first_ends.append(end)
        if len(self._first_ends) <= _GUESSED_FROM:
            return
        seconds = (end - self._first_ends[0]) / _GUESSED_FROM
        left = runner.max_iters - runner.iter - 1
        if left:
            runner.logger.info(
                f"first guess: {left} iterations are left and take {format_seconds(seconds * left)}"
                ", validation not included"
            )

    def _report(self, runner: Runner) -> list[str]:
        done, total = runner.iter + 1, runner.max_iters
        seconds = median_of_rounds(self._seconds, self._round)
        lasting = lasting_memory(runner.model, state_bytes(runner.optim_wrapper.optimizer))
        share = median_of_rounds(self._waits, self._round) / seconds
        lines = [
            "plan of this run",
            f"  measured in iterations {done - self._needed + 1} to {done}, on "
            f"{_device_text(self._device)}:",
            f"    an iteration takes {format_seconds(seconds)} (median of "
            f"{self._needed // self._round} rounds of {self._round}), "
            f"{_images_per_second(self._terms, seconds):.4g} images a second",
            f"    {self._terms}",
            f"    {_memory_text(lasting, self._peak)}",
        ]
        if share > _WAITING_WORTH_A_WORD:
            lines.append(
                f"    waiting for data takes {share:.0%} of an iteration: more workers or faster "
                f"decoding"
            )
        return [
            *lines,
            "  extrapolated from that:",
            f"    {total - done} iterations are left and take "
            f"{format_seconds(seconds * (total - done))}; all {total} take "
            f"{format_seconds(seconds * total)}",
            "    not included: validation, pauses between epochs, stalls outside these iterations",
        ]


def _images_per_second(terms: BatchTerms, seconds: float) -> float:
    return terms.world_size * terms.per_device / seconds


def _device_text(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} ({torch.get_num_threads()} threads)"


def _peak_bytes(device: torch.device) -> int:
    """The peak since the log was last written; 0 on a CPU, where nobody counts."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _memory_text(lasting: LastingMemory, peak: int) -> str:
    parts = (
        f"parameters {format_bytes(lasting.parameters)}, gradients "
        f"{format_bytes(lasting.gradients)}, optimizer state {format_bytes(lasting.optimizer)}"
    )
    if peak == 0:
        return f"memory: {parts}; activations are measured on GPUs only"
    return (
        f"memory: {format_bytes(peak)} at the peak, of which {parts}, activations and all else "
        f"{format_bytes(peak - lasting.total())}"
    )
