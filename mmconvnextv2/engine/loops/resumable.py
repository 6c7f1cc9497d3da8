"""Training loops that go on at the batch where a checkpoint was written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmconvnextv2.engine.loops.resumable_position import (
    DataPosition,
    batches_from,
    startable_sampler,
)
from mmconvnextv2.engine.loops.resumable_schedules import replay_schedules


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, resumed within an epoch.

    A checkpoint that was written within an epoch goes on with the next batch of that epoch, and
    with `StatelessSampler` nothing is loaded for it; with other samplers the batches that are done
    are loaded and thrown away. A checkpoint that was written at the end of an epoch, where the
    Runner writes them, was written before the validation of that epoch: this is made up for first.
    So the resumed run does what the uninterrupted one would have done.

    Another number of processes, or another batch size, is allowed and announced in the log: the
    samples that are left of the epoch are dealt out anew, and where an epoch then has another
    number of iterations, ``max_iters`` and the schedules follow. `iter` goes on counting.

    The arguments are those of mmengine's EpochBasedTrainLoop.

    Raises:
        ValueError: the batch sampler does not say how many samples are in a batch.
    """

    _samples_done = 0  # of the epoch that comes next

    def run(self) -> nn.Module:
        """Train, from the beginning or from where the Runner has resumed."""
        self._samples_done = self._go_on()
        self.runner.call_hook("before_train")
        if self._iter > 0 and self._samples_done == 0:
            self._validate_where_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_where_due()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for what is left of an epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done, self._samples_done = self._samples_done, 0
        position = DataPosition.of_loader(self.dataloader, self._epoch, self._iter, done)
        position.save(self.runner.message_hub)
        first = self._batches_done(done)
        starts_there = startable_sampler(self.dataloader) is not None
        for idx, data_batch in enumerate(self.dataloader, first if starts_there else 0):
            if idx >= first:
                self.run_iter(idx, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _go_on(self) -> int:
        """Find where to go on, and return the samples of the epoch that are done."""
        if self._iter == 0:
            return 0
        now = DataPosition.of_loader(self.dataloader, self._epoch, self._iter)
        before = DataPosition.load(self.runner.message_hub)
        done = 0
        if before is not None:
            for change in now.changes_since(before):
                self.runner.logger.warning(change)
            done = before.samples_at(self._iter) if before.epoch == self._epoch else 0
        elif self._iter != self._epoch * now.batches:
            self.runner.logger.warning(
                "the checkpoint does not say how far its epoch was, as those of other loops: "
                f"epoch {self._epoch + 1} begins anew"
            )
        first = self._batches_done(done)
        if before is not None and now.batches != before.batches:
            note = replay_schedules(self.runner, self._epoch, first)
            self.runner.logger.warning(
                f"an epoch has {now.batches} iterations, it had {before.batches}: {note}"
            )
        self._count_iterations_left(first)
        sampler = startable_sampler(self.dataloader)
        if sampler is not None:
            sampler.start_at(self._epoch, done)
        if done:
            self.runner.logger.info(
                f"epoch {self._epoch + 1} goes on with batch {first + 1} of {now.batches}"
                + ("" if sampler is not None else "; the batches before it are loaded again")
            )
        return done

    def _batches_done(self, samples: int) -> int:
        """Batches of the epoch that come no more when so many samples are done."""
        if startable_sampler(self.dataloader) is not None:
            return len(self.dataloader) - batches_from(self.dataloader, samples)
        per_iteration = DataPosition.of_loader(self.dataloader, 0, 0).samples_per_iteration
        return samples // per_iteration

    def _count_iterations_left(self, batches_done: int) -> None:
        left = (self._max_epochs - self._epoch) * len(self.dataloader) - batches_done
        if self._iter + left != self.max_iters:
            self._max_iters = self._iter + left
            self.runner.optim_wrapper.initialize_count_status(
                self.runner.model, self._iter, self._max_iters
            )

    def _validate_where_due(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
            self.runner.val_loop.run()


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations, resumed without loading what has been seen.

    With `StatelessInfiniteSampler` a resumed run starts at the sample where it was, whatever the
    number of processes and the batch size are now; changes are announced in the log. With other
    samplers the batches that are done are loaded and thrown away. A checkpoint at an iteration
    with a validation was written before it: this is made up for first.

    Args:
        runner: the Runner.
        dataloader: the loader or its config.
        max_iters: iterations of the whole run.
        val_begin: the first iteration that may be validated.
        val_interval: iterations from one validation to the next.
        dynamic_intervals: pairs of an iteration and the interval that holds from there on.

    Raises:
        ValueError: the batch sampler does not say how many samples are in a batch, or there is no
            batch.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict[str, Any],
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(runner, dataloader, max_iters, val_begin, val_interval, dynamic_intervals)
        if len(self.dataloader) == 0:
            raise ValueError(
                f"{len(self.dataloader.dataset)} samples do not fill one batch: lower "
                "train_dataloader.batch_size"
            )

    def run(self) -> nn.Module:
        """Train, from the beginning or from where the Runner has resumed."""
        to_throw_away = self._go_on()
        self.runner.call_hook("before_train")
        # mmengine takes the whole of such a run for one epoch.
        self.runner.call_hook("before_train_epoch")
        if self._iter > 0:
            self._validate_where_due()
        self.dataloader_iterator = itertools.islice(self._batches(), to_throw_away, None)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate_where_due()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _go_on(self) -> int:
        """Find where to go on, and return the batches to load and throw away."""
        hub = self.runner.message_hub
        now = DataPosition.of_loader(self.dataloader, 0, self._iter)
        before = DataPosition.load(hub) if self._iter > 0 else None
        # Without a note, as mmengine's own loop leaves none, all batches were as they are now.
        done = before.samples_at(self._iter) if before else self._iter * now.samples_per_iteration
        for change in now.changes_since(before) if before else []:
            self.runner.logger.warning(change)
        DataPosition.of_loader(self.dataloader, 0, self._iter, done).save(hub)
        sampler = startable_sampler(self.dataloader)
        if sampler is None or hasattr(sampler, "set_epoch"):
            to_throw_away = done // now.samples_per_iteration
            if to_throw_away:
                self.runner.logger.warning(
                    f"{to_throw_away} batches are loaded again to get to where the run was: "
                    "sampler=dict(type='StatelessInfiniteSampler') goes there at once"
                )
            return to_throw_away
        sampler.start_at(0, done)
        return 0

    def _batches(self) -> Iterator[Any]:
        sampler = getattr(self.dataloader.batch_sampler, "sampler", self.dataloader.sampler)
        for epoch in itertools.count():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            yield from self.dataloader

    def _validate_where_due(self) -> None:
        self._decide_current_val_interval()
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is not None and self._iter >= self.val_begin and due:
            self.runner.val_loop.run()
