"""`ResumableEarlyStoppingHook`: best score and patience outlive a resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from resumable_toy import Interrupt, Run, log_of

from mmconvnextv2.engine import ResumableEarlyStoppingHook

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _no_survey_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "_log_env", lambda self, env_cfg: None)


@pytest.mark.parametrize("hook", [ResumableEarlyStoppingHook, EarlyStoppingHook])
def test_early_stopping_remembers(tmp_path: Path, hook: type[Hook]) -> None:
    """Best at 6, patience of 3: stops after 24. A resume at 12 or 18 has to keep count."""
    scores = {"6": 0.5, "12": 0.6, "18": 0.6, "24": 0.6, "30": 0.4}
    loop = dict(type="ResumableEpochLoop", max_epochs=6)

    def run(*hooks: Hook, resume: str | None = None, patience: int = 3) -> Run:
        stop = hook(monitor="score", rule="less", min_delta=0.0, patience=patience)
        return Run(tmp_path, stop, *hooks, loop=loop, resume=resume, scores=scores)

    assert run().go().runner.iter == 24
    run(Interrupt(in_validation=18)).cut()
    resumed = run(resume="epoch_3.pth").go()
    if hook is EarlyStoppingHook:
        assert resumed.runner.iter > 24, "the reason for a hook of our own"
        return
    assert resumed.runner.iter == 24
    # Validated, and killed before the next checkpoint: the validation is made again.
    run(Interrupt(after=21)).cut()
    assert run(resume="epoch_3.pth").go().runner.iter == 24
    assert run(resume="cut.pth").go().runner.iter == 24


def test_a_validation_that_is_made_again_counts_once() -> None:
    """As after a checkpoint that CheckpointHook wrote again behind the best validation so far."""
    runner = SimpleNamespace(iter=6, message_hub=MessageHub("once"))
    hook = ResumableEarlyStoppingHook(monitor="score", rule="less", patience=2)
    hook.after_val_epoch(runner, {"score": 0.5})
    assert hook.priority == "LOW", "before CheckpointHook, VERY_LOW"
    for _ in range(3):
        resumed = ResumableEarlyStoppingHook(monitor="score", rule="less", patience=2)
        resumed.before_train(runner)
        resumed.after_val_epoch(runner, {"score": 0.5})
        assert (resumed.best_score, resumed.wait_count) == (0.5, 0)


def test_a_run_that_had_stopped_early_stays_stopped(tmp_path: Path) -> None:
    scores = {"6": 0.5}
    loop = dict(type="ResumableEpochLoop", max_epochs=6)

    class SaveAtEnd(Hook):
        def after_train(self, runner):
            runner.save_checkpoint(
                runner.work_dir, "end.pth", meta=dict(epoch=runner.epoch, iter=runner.iter)
            )

    def run(*hooks: Hook, resume: str | None = None, patience: int = 2) -> Run:
        stop = ResumableEarlyStoppingHook(monitor="score", rule="less", patience=patience)
        return Run(tmp_path, stop, *hooks, loop=loop, resume=resume, scores=scores).go()

    assert run(SaveAtEnd()).runner.iter == 18
    assert run(resume="end.pth").steps == []
    assert "the run had stopped early" in log_of(tmp_path)
    assert run(resume="end.pth", patience=4).runner.iter == 30
