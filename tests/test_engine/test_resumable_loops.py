"""`ResumableEpochLoop` and `ResumableIterLoop`: where they go on, what they load, what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import LOOPS
from mmengine.runner import Runner
from resumable_toy import LENGTH, Interrupt, Numbers, Run, assert_equal_to, log_of
from torch.utils.data import BatchSampler

from mmconvnextv2.datasets import StatelessSampler
from mmconvnextv2.engine import AccumulatedGradientsHook, ResumableEpochLoop, ResumableIterLoop
from mmconvnextv2.engine.loops.resumable_position import DataPosition

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _no_survey_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "_log_env", lambda self, env_cfg: None)


@pytest.mark.parametrize("done", [1, 4, 6, 7, 11, 12, 17])
def test_an_epoch_goes_on_with_its_next_batch_and_loads_no_other(tmp_path: Path, done: int) -> None:
    """In the middle, at its last batch (before the hooks of its end), in every epoch."""
    whole = Run(tmp_path / "whole").go()
    assert len(set(whole.steps)) == 18
    first = Run(tmp_path / "cut", Interrupt(after=done)).cut()
    rest = Run(tmp_path / "cut", resume="cut.pth").go()
    assert_equal_to(whole, first, rest, done)
    assert rest.read == [index for batch, _ in whole.steps[done:] for index in batch]
    assert first.watch.epochs + rest.watch.epochs == [0, 1, 2]
    assert first.watch.validated + rest.watch.validated == [6, 12, 18]


@pytest.mark.parametrize("options", [dict(batch_size=5, drop_last=True), dict(batch_size=5)])
def test_epochs_that_leave_samples_over(tmp_path: Path, options: dict) -> None:
    whole = Run(tmp_path / "whole", **options).go()
    for done in (1, 3, 5):
        first = Run(tmp_path / "cut", Interrupt(after=done), **options).cut()
        rest = Run(tmp_path / "cut", resume="cut.pth", **options).go()
        assert_equal_to(whole, first, rest, done)


def test_workers_and_a_second_interruption(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole").go()
    workers = dict(num_workers=2, persistent_workers=True)
    first = Run(tmp_path / "cut", Interrupt(after=8), **workers).cut()
    second = Run(tmp_path / "cut", Interrupt(after=10), resume="cut.pth", **workers).cut()
    rest = Run(tmp_path / "cut", resume="cut.pth").go()
    assert first.steps + second.steps + rest.steps == whole.steps
    assert (len(first.steps), len(second.steps)) == (8, 2)


@pytest.mark.parametrize(("done", "batches"), [(3, 2), (6, 4), (9, 6), (15, 10)])
def test_another_batch_size_deals_out_what_is_left_and_keeps_the_schedule(
    tmp_path: Path, done: int, batches: int
) -> None:
    """Steps of 3 instead of 2 samples: the rates are those of a run that always had 3."""
    as_if = Run(tmp_path / "as_if", batch_size=3).go()
    first = Run(tmp_path / "cut", Interrupt(after=done)).cut()
    rest = Run(tmp_path / "cut", resume="cut.pth", batch_size=3).go()
    assert [batch for batch, _ in rest.steps] == [batch for batch, _ in as_if.steps[batches:]]
    assert rest.watch.rates == pytest.approx(as_if.watch.rates[batches:], rel=1e-12)
    assert rest.watch.places == as_if.watch.places[batches:]
    seen = [index for run in (first, rest) for batch, _ in run.steps for index in batch]
    for epoch in range(3):
        assert sorted(seen[LENGTH * epoch : LENGTH * (epoch + 1)]) == list(range(LENGTH))
    # Iterations go on counting, so that the newest checkpoint is the one with the most.
    assert rest.runner.iter == rest.runner.max_iters == done + len(as_if.steps) - batches
    log = log_of(tmp_path / "cut")
    assert "resumed with 1 (processes) x 3 (samples a batch), the checkpoint had 1 x 2" in log
    assert "an epoch has 4 iterations, it had 6" in log


def test_samples_that_do_not_fill_a_new_batch(tmp_path: Path) -> None:
    first = Run(tmp_path, Interrupt(after=2)).cut()
    rest = Run(tmp_path, resume="cut.pth", batch_size=5).go()
    seen = [index for run in (first, rest) for batch, _ in run.steps for index in batch]
    assert [len(batch) for batch, _ in rest.steps[:3]] == [5, 3, 5]
    assert sorted(seen[:LENGTH]) == list(range(LENGTH))


@pytest.mark.parametrize("resume", ["epoch_1.pth", "epoch_2.pth", "cut.pth"])
def test_gradients_of_an_unfinished_step_are_kept(tmp_path: Path, resume: str) -> None:
    """Steps of 4 batches in epochs of 6: the first epoch ends within one, the second behind one."""
    whole = Run(tmp_path / "whole", accumulate=4).go()
    keep = AccumulatedGradientsHook()
    first = Run(tmp_path / "cut", keep, Interrupt(after=15), accumulate=4).cut()
    rest = Run(tmp_path / "cut", AccumulatedGradientsHook(), resume=resume, accumulate=4).go()
    done = {"epoch_1.pth": 6, "epoch_2.pth": 12, "cut.pth": 15}[resume]
    assert_equal_to(whole, first, rest, done)
    between = done % 4 != 0
    held = torch.load(tmp_path / "cut" / resume, weights_only=True)
    assert ("accumulated_gradients" in held) == between
    without = Run(tmp_path / "cut", resume=resume, accumulate=4).go()
    assert torch.equal(without.model.weight, whole.model.weight) != between


def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole").go()
    first = Run(tmp_path / "cut", Interrupt(in_validation=12)).cut()
    assert first.watch.validated == [6]
    rest = Run(tmp_path / "cut", resume="epoch_2.pth").go()
    assert rest.watch.validated == [12, 18]
    assert first.steps + rest.steps == whole.steps
    finished = Run(tmp_path / "cut", resume="epoch_3.pth").go()
    assert (finished.steps, finished.watch.validated) == ([], [18])


def test_checkpoints_of_mmengine_s_own_loop(tmp_path: Path) -> None:
    """At the end of an epoch nothing is missing; within it nobody knows how far it was."""
    own = dict(by_epoch=True, max_epochs=3)
    whole = Run(tmp_path / "whole").go()
    first = Run(tmp_path / "cut", Interrupt(after=8), loop=own).cut()
    rest = Run(tmp_path / "cut", resume="epoch_1.pth").go()
    assert first.steps[:6] + rest.steps == whole.steps
    assert "does not say how far" not in log_of(tmp_path / "cut")
    anew = Run(tmp_path / "cut", resume="cut.pth").go()
    assert [batch for batch, _ in anew.steps] == [batch for batch, _ in whole.steps[6:]]
    assert "does not say how far its epoch was" in log_of(tmp_path / "cut")


class Pairs(BatchSampler):
    """Takes samples as no plain batch sampler does."""

    def __iter__(self):
        return iter(list(super().__iter__())[::-1])


@pytest.mark.parametrize(
    "loader",
    [
        dict(dataset=Numbers(), sampler=dict(type=DefaultSampler, shuffle=True)),
        dict(batch_sampler=dict(type=Pairs, drop_last=False)),
    ],
    ids=["sampler", "batch_sampler"],
)
def test_other_samplers_are_gone_through(tmp_path: Path, loader: dict) -> None:
    whole = Run(tmp_path / "whole", **loader).go()
    first = Run(tmp_path / "cut", Interrupt(after=9), **loader).cut()
    rest = Run(tmp_path / "cut", resume="cut.pth", **loader).go()
    batches = [batch for batch, _ in whole.steps]
    assert [batch for batch, _ in first.steps + rest.steps] == batches
    assert rest.watch.places == whole.watch.places[9:]
    assert "the batches before it are loaded again" in log_of(tmp_path / "cut")


def test_batches_without_a_size_are_refused(tmp_path: Path) -> None:
    class Sizeless(Pairs):
        def __init__(self, sampler, batch_size):
            super().__init__(sampler, batch_size, drop_last=False)
            del self.batch_size

        def __len__(self):
            return 6

    run = Run(tmp_path, batch_sampler=dict(type=Sizeless))
    with pytest.raises(ValueError, match="Sizeless states no batch_size: use mmengine's"):
        run.go()


ITERATIONS = dict(type="ResumableIterLoop", max_iters=15, val_interval=4)


@pytest.mark.parametrize("done", [3, 4, 7, 14])
@pytest.mark.parametrize("workers", [0, 2])
def test_iterations_go_on_and_load_nothing_twice(tmp_path: Path, done: int, workers: int) -> None:
    whole = Run(tmp_path / "whole", loop=ITERATIONS).go()
    options = dict(num_workers=workers, persistent_workers=workers > 0, loop=ITERATIONS)
    first = Run(tmp_path / "cut", Interrupt(after=done), **options).cut()
    rest = Run(tmp_path / "cut", resume="cut.pth", **options).go()
    assert_equal_to(whole, first, rest, done)
    assert first.watch.validated + rest.watch.validated == [4, 8, 12, 15]
    if workers == 0:
        assert rest.read == [index for batch, _ in whole.steps[done:] for index in batch]


def test_iterations_with_another_batch_size(tmp_path: Path) -> None:
    def indices(*runs: Run) -> list[int]:
        return [index for run in runs for batch, _ in run.steps for index in batch]

    whole = Run(tmp_path / "whole", loop=ITERATIONS, batch_size=3).go()
    first = Run(tmp_path / "cut", Interrupt(after=5), loop=ITERATIONS).cut()
    rest = Run(tmp_path / "cut", resume="cut.pth", loop=ITERATIONS, batch_size=3).go()
    assert indices(first, rest) == indices(whole)[: 5 * 2 + 10 * 3]
    again = Run(tmp_path / "cut", Interrupt(after=8), resume="cut.pth", loop=ITERATIONS).cut()
    rest = Run(tmp_path / "cut", resume="cut.pth", loop=ITERATIONS, batch_size=3).go()
    assert indices(first, again, rest) == indices(whole)[: 8 * 2 + 7 * 3]
    assert "the checkpoint had 1 x 2" in log_of(tmp_path / "cut")


def test_iterations_over_a_sampler_that_ends(tmp_path: Path) -> None:
    ends = dict(loop=ITERATIONS, sampler=dict(type=StatelessSampler))
    whole = Run(tmp_path / "whole", **ends).go()
    by_epoch = Run(tmp_path / "epochs").go()
    assert [batch for batch, _ in whole.steps] == [batch for batch, _ in by_epoch.steps[:15]]
    first = Run(tmp_path / "cut", Interrupt(after=8), **ends).cut()
    rest = Run(tmp_path / "cut", resume="cut.pth", **ends).go()
    assert_equal_to(whole, first, rest, 8)
    assert "8 batches are loaded again" in log_of(tmp_path / "cut")


def test_iterations_without_a_batch_are_refused(tmp_path: Path) -> None:
    ends = dict(sampler=dict(type=StatelessSampler), batch_size=13, drop_last=True)
    run = Run(tmp_path, loop=ITERATIONS, **ends)
    with pytest.raises(ValueError, match="12 samples do not fill one batch"):
        run.go()


def test_changes_of_the_data_are_named() -> None:
    before = DataPosition(1, 30, 8, batch_size=2, world_size=4, length=88, batches=11)
    assert before.samples_at(33) == 8 + 3 * 8
    assert before.changes_since(before) == []
    now = DataPosition(1, 33, 0, batch_size=2, world_size=4, length=90, batches=12)
    (note,) = now.changes_since(before)
    assert "90 samples, the checkpoint had 88" in note


def test_registered() -> None:
    assert LOOPS.get("ResumableEpochLoop") is ResumableEpochLoop
    assert LOOPS.get("ResumableIterLoop") is ResumableIterLoop
