"""`StopOnSignalHook`: a signal ends a run behind a step, and the resumed run is bit-equal."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch.utils.data import DataLoader
from toy_training import Trace, log_of, make_runner

from mmconvnextv2.engine.hooks import StopOnSignalHook
from mmconvnextv2.engine.hooks.stop_on_signal import SIGNALS, exit_code, shield_workers

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, Any]]:
    """What handled the signals before a test handles them after it."""
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    former = {number: signal.getsignal(number) for number in SIGNALS}
    yield former
    now = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in former.items():
        signal.signal(number, handler)
    signal.signal(signal.SIGINT, outside)
    assert now == former


class Send(Hook):
    """Sends signals to this process within a step, before the model is called."""

    def __init__(self, step: int, *numbers: int, also: Callable[[], None] | None = None) -> None:
        self.step = step
        self.numbers = numbers
        self.also = also

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter + 1 == self.step:
            for number in self.numbers:
                signal.raise_signal(number)
            if self.also is not None:
                self.also()


def stop(runner: Runner) -> int:
    with pytest.raises(SystemExit) as left:
        runner.train()
    return left.value.code


def meta(path: Path) -> tuple[int, int]:
    saved = torch.load(path, weights_only=True)["meta"]
    return saved["epoch"], saved["iter"]


def assert_same_end(first: Trace, second: Trace, last: int) -> None:
    for name, value in first.weights[last].items():
        assert torch.equal(second.weights[last][name], value), name


@pytest.mark.fault(
    6,
    "SIGTERM, SIGUSR1, Ctrl-C at a step",
    "step finished, saved, exit 143, 138, 130; bit-equal after the resume",
)
@pytest.mark.parametrize("step", [2, 4, 6])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, number: int, step: int
) -> None:
    """Step 4 of 8 is the last one of an epoch."""
    whole = Trace()
    make_runner(tmp_path / "whole", whole).train()

    trace = Trace()
    code = stop(make_runner(tmp_path / "run", trace, Send(step, number), StopOnSignalHook()))
    assert code == exit_code(number)
    assert max(trace.losses) == step, "the step was finished"
    checkpoint = tmp_path / "run" / f"iter_{step}.pth"
    assert meta(checkpoint) == ((step - 1) // 4, step)
    assert f"stopped by {signal.Signals(number).name}" in log_of(tmp_path / "run")

    rest = Trace()
    make_runner(
        tmp_path / "run", rest, StopOnSignalHook(), resume=True, load_from=str(checkpoint)
    ).train()
    assert {**trace.losses, **rest.losses} == whole.losses
    assert min(rest.losses) == step + 1
    assert_same_end(whole, rest, 8)


def test_the_exit_codes_are_those_of_shells() -> None:
    codes = {number: exit_code(number) for number in SIGNALS}
    assert codes == {signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGINT: 130}


def signal_from_elsewhere(number: int) -> None:
    """Signal this process and its children as Ctrl-C and launchers do: not from this process."""
    children = [child.pid for child in multiprocessing.active_children()]
    assert len(children) == 2
    everyone = [str(pid) for pid in [*children, os.getpid()]]
    subprocess.run(["kill", f"-{number}", *everyone], check=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_loader_processes_outlive_a_signal_to_everyone(tmp_path: Path, number: int) -> None:
    whole = Trace()
    make_runner(tmp_path / "whole", whole).train()
    trace = Trace()
    send = Send(2, also=lambda: signal_from_elsewhere(number))
    code = stop(make_runner(tmp_path / "run", trace, send, StopOnSignalHook(), workers=2))
    assert code == exit_code(number)
    rest = Trace()
    make_runner(
        tmp_path / "run",
        rest,
        workers=2,
        resume=True,
        load_from=str(tmp_path / "run" / "iter_2.pth"),
    ).train()
    assert {**trace.losses, **rest.losses} == whole.losses


def test_a_shielded_worker_ends_for_its_parent_alone() -> None:
    started: list[int] = []
    loader = DataLoader(range(64), num_workers=1, worker_init_fn=started.append)
    shield_workers(loader)
    initialize = loader.worker_init_fn
    shield_workers(loader)
    assert loader.worker_init_fn is initialize, "once is enough"
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in SIGNALS:
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    assert [int(batch) for batch in batches] == list(range(1, 64))

    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_a_loader_without_processes_stays_as_it_is() -> None:
    loader = DataLoader(range(4))
    shield_workers(loader)
    assert loader.worker_init_fn is None


def test_two_signals_at_once_are_one(tmp_path: Path) -> None:
    """`timeout` signals a process and then its group; a launcher may do the same."""
    send = Send(3, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    assert stop(make_runner(tmp_path, send, StopOnSignalHook())) == 143
    assert (tmp_path / "iter_3.pth").is_file()


def test_an_accumulated_step_is_finished(tmp_path: Path) -> None:
    wrapper = dict(optimizer=dict(type="SGD", lr=0.05), accumulative_counts=2)
    runner = make_runner(
        tmp_path, Send(5, signal.SIGTERM), StopOnSignalHook(), optim_wrapper=wrapper
    )
    assert stop(runner) == 143
    assert (tmp_path / "iter_6.pth").is_file() and not (tmp_path / "iter_5.pth").exists()


@METRICS.register_module(force=True)
class CountMetric(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return dict(batches=len(results))


VALIDATION = dict(
    val_dataloader=dict(
        dataset=dict(type="NumberedVectors", count=8),
        batch_size=4,
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="pseudo_collate"),
    ),
    val_cfg=dict(),
    val_evaluator=dict(type="CountMetric"),
    default_hooks=dict(checkpoint=dict(type="DurableCheckpointHook", interval=1)),
)


class SendInValidation(Hook):
    """Keeps the checkpoint that was written before the validation, then signals in its middle."""

    def __init__(self) -> None:
        self.batches = 0

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.batches += 1
        path = Path(runner.work_dir) / "epoch_1.pth"
        shutil.copy(path, path.with_name("before.pth"))
        path.unlink()
        signal.raise_signal(signal.SIGTERM)


def test_a_validation_is_broken_off_with_the_weights_of_training(tmp_path: Path) -> None:
    """EMAHook has put the averages into the model; the checkpoint is the one before, with both."""
    send = SendInValidation()
    ema = dict(type="EMAHook", momentum=0.3)
    runner = make_runner(tmp_path, ema, send, StopOnSignalHook(), **VALIDATION)
    assert stop(runner) == 143
    assert send.batches == 1
    before, after = (
        torch.load(tmp_path / name, weights_only=True) for name in ("before.pth", "epoch_1.pth")
    )
    assert meta(tmp_path / "epoch_1.pth") == (1, 4)
    assert not torch.equal(
        after["state_dict"]["last.weight"], after["ema_state_dict"]["module.last.weight"]
    )
    for key in ("state_dict", "ema_state_dict"):
        for name, value in before[key].items():
            assert torch.equal(after[key][name], value), (key, name)


def test_behind_a_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes finish it, since they might be in different batches of it."""
    monkeypatch.setattr(StopOnSignalHook, "after_val_iter", Hook.after_val_iter)
    send = SendInValidation()
    send.before_val_epoch = lambda runner: signal.raise_signal(signal.SIGUSR1)
    send.before_val_iter = lambda *args, **kwargs: None
    assert stop(make_runner(tmp_path, send, StopOnSignalHook(), **VALIDATION)) == 138
    assert "[2/2]" in log_of(tmp_path)
    assert meta(tmp_path / "epoch_1.pth") == (1, 4)


def test_in_another_thread_a_run_goes_on_without(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, StopOnSignalHook())
    thread = threading.Thread(target=runner.train)
    thread.start()
    thread.join(timeout=60)
    assert runner.iter == 8
    assert "not in the main thread" in log_of(tmp_path)


def test_the_former_handlers_are_back(tmp_path: Path, handlers: dict[int, Any]) -> None:
    def own(number: int, frame: Any) -> None:
        raise AssertionError("no signal is sent")

    signal.signal(signal.SIGUSR1, own)
    during: list[Any] = []
    look = Send(2, also=lambda: during.append(signal.getsignal(signal.SIGUSR1)))
    hook = StopOnSignalHook()
    make_runner(tmp_path, look, hook).train()
    assert during == [hook._on_signal]
    assert signal.getsignal(signal.SIGUSR1) is own
    signal.signal(signal.SIGUSR1, handlers[signal.SIGUSR1])


def test_a_run_that_has_failed_catches_no_signals(tmp_path: Path) -> None:
    """No hook is told of a failure; Ctrl-C in a notebook has to work afterwards all the same."""

    def fail() -> None:
        raise OSError("a fault")

    hook = StopOnSignalHook()
    with pytest.raises(OSError, match="a fault"):
        make_runner(tmp_path, Send(2, also=fail), hook).train()
    assert signal.getsignal(signal.SIGINT) == hook._on_signal
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_without_a_checkpoint_hook_it_says_so(tmp_path: Path) -> None:
    hooks = dict(default_hooks=dict(checkpoint=None))
    runner = make_runner(tmp_path, Send(2, signal.SIGTERM), StopOnSignalHook(), **hooks)
    assert stop(runner) == 143
    log = log_of(tmp_path)
    assert "without a checkpoint" in log and "nothing is saved" in log
    assert not list(tmp_path.glob("*.pth"))


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from toy_training import make_runner
from mmengine.hooks import Hook
from mmconvnextv2.engine.hooks import StopOnSignalHook
from mmconvnextv2.engine.hooks import stop_on_signal

stop_on_signal._SAME_SIGNAL_S = 0.0

class Stuck(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.{second})
            print("still here", flush=True)

make_runner(Path({work_dir!r}), Stuck(), StopOnSignalHook()).train()
"""


@pytest.mark.fault(6, "a second signal", "ends at once")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(tmp_path: Path, second: signal.Signals) -> None:
    script = SCRIPT.format(
        tests=str(Path(__file__).parents[1]), work_dir=str(tmp_path / "run"), second=second.name
    )
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == -second, run.stderr
    assert "still here" not in run.stdout
    assert run.stderr.count("SIGINT: stopping behind this step; once more ends at once") == 1
    assert not list((tmp_path / "run").glob("*.pth"))
