"""A checkpoint's path holds a complete file or nothing, whenever the process dies."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmconvnextv2.checkpoint.validity import (
    check_checkpoint,
    newest_valid_checkpoint,
    run_checkpoints,
)
from mmconvnextv2.engine import DurableCheckpointHook, PortableCheckpointHook
from mmconvnextv2.engine.hooks.durable_checkpoint import CheckpointNotWrittenError

pytestmark = pytest.mark.integration

WIDTH = 100

WIDTH_TO_KILL = 1200
"""Makes a checkpoint of 17 MB, so that a kill at any time often finds it half written."""

NAMES = itertools.count()


class ToyModel(BaseModel):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mode: str = "tensor") -> Any:
        y = self.linear(x)
        return dict(loss=y.square().mean()) if mode == "loss" else [y]


class ToyData(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(x=torch.full((WIDTH,), float(index)))


class Scripted(BaseMetric):
    """Gives prescribed figures, one a validation."""

    def __init__(self, **figures: list[float]) -> None:
        super().__init__()
        self.figures = figures
        self.count = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        self.count += 1
        return {name: values[self.count - 1] for name, values in self.figures.items()}


def make_runner(
    work_dir: Path,
    epochs: int,
    metric: Scripted | None = None,
    hooks: tuple[Hook, ...] = (),
    resume: bool = False,
    kind: str = "DurableCheckpointHook",
    width: int = WIDTH,
    **checkpoint: Any,
) -> Runner:
    """A Runner of two steps an epoch, with a checkpoint after each."""
    sampler = dict(type="DefaultSampler", shuffle=False)
    collate = dict(type="default_collate")
    loader = dict(
        batch_size=2, num_workers=0, dataset=ToyData(), sampler=sampler, collate_fn=collate
    )
    validation = (
        {}
        if metric is None
        else dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=[metric])
    )
    return Runner(
        model=ToyModel(width),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.01)),
        default_hooks=dict(checkpoint=dict(type=kind, interval=1, **checkpoint)),
        custom_hooks=[PortableCheckpointHook(), *hooks],
        load_from=str(newest_valid_checkpoint(work_dir)) if resume else None,
        resume=resume,
        # Runners of one name share their message hub.
        experiment_name=f"{work_dir.name}_{next(NAMES)}",
        **validation,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py")


# What is kept, and in which order it goes.


@pytest.fixture
def deletions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    """Each checkpoint that is deleted, with the valid ones that are there then."""
    seen: list[tuple[str, set[str]]] = []

    def spy(delete: Callable[..., None], as_path: Callable[..., Path]) -> Callable[..., None]:
        def deleting(path: Any, *args: Any, **kwargs: Any) -> None:
            file = as_path(path)
            if file.suffix == ".pth":
                others = set(file.parent.glob("*.pth")) - {file}
                whole = {p.name for p in others if torch.load(p, weights_only=True)}
                seen.append((file.name, whole))
            delete(path, *args, **kwargs)

        return deleting

    monkeypatch.setattr(Path, "unlink", spy(Path.unlink, lambda path: path))
    monkeypatch.setattr(os, "remove", spy(os.remove, Path))
    return seen


@pytest.mark.fault(2, "every deletion of an older checkpoint watched", "two valid ones are there")
def test_the_new_one_is_there_before_the_old_one_goes(
    tmp_path: Path, deletions: list[tuple[str, set[str]]]
) -> None:
    make_runner(tmp_path, 5, max_keep_ckpts=2).train()
    assert deletions == [
        (f"epoch_{n}.pth", {f"epoch_{n + 1}.pth", f"epoch_{n + 2}.pth"}) for n in (1, 2, 3)
    ]
    assert names(tmp_path) == ["epoch_4.pth", "epoch_5.pth", "last_checkpoint"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "epoch_5.pth")


def test_mmengine_s_own_hook_deletes_first(
    tmp_path: Path, deletions: list[tuple[str, set[str]]]
) -> None:
    """What the tests here would say of the hook that this one replaces."""
    make_runner(tmp_path, 2, kind="CheckpointHook", max_keep_ckpts=1).train()
    assert deletions == [("epoch_1.pth", set())]


def test_one_becomes_two(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_runner(tmp_path, 3, max_keep_ckpts=1).train()
    assert names(tmp_path) == ["epoch_2.pth", "epoch_3.pth", "last_checkpoint"]
    assert "max_keep_ckpts=1 keeps 2" in "".join(capfd.readouterr())
    with pytest.raises(ValueError, match=r"must be -1 \(all\) or at least 2, got 0"):
        DurableCheckpointHook(max_keep_ckpts=0)


def test_a_resumed_run_prunes_what_it_wrote_and_nothing_else(tmp_path: Path) -> None:
    make_runner(tmp_path, 3, max_keep_ckpts=2).train()
    # A copy that somebody made.
    (tmp_path / "iter_1.pth").write_bytes((tmp_path / "epoch_2.pth").read_bytes())
    left = tmp_path / ".epoch_4.pth.0123456789abcdef0123456789abcdef.part"
    left.touch()
    make_runner(tmp_path, 5, max_keep_ckpts=2, resume=True).train()
    assert names(tmp_path) == ["epoch_4.pth", "epoch_5.pth", "iter_1.pth", "last_checkpoint"]


class SaveBetween(Hook):
    """Saves after one step of training."""

    priority = "LOWEST"

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, **_: Any) -> None:
        if runner.iter + 1 == self.iteration:
            (hook,) = (hook for hook in runner.hooks if isinstance(hook, DurableCheckpointHook))
            assert hook.save_now(runner) == Path(runner.work_dir) / f"iter_{self.iteration}.pth"


def test_a_checkpoint_in_between_counts_among_the_kept(tmp_path: Path) -> None:
    make_runner(tmp_path, 2, hooks=(SaveBetween(3),), max_keep_ckpts=2).train()
    assert names(tmp_path) == ["epoch_2.pth", "iter_3.pth", "last_checkpoint"]
    assert check_checkpoint(tmp_path / "iter_3.pth") == (1, 3)
    assert check_checkpoint(tmp_path / "epoch_2.pth") == (2, 4)
    make_runner(tmp_path, 3, max_keep_ckpts=2, resume=True).train()
    assert names(tmp_path) == ["epoch_2.pth", "epoch_3.pth", "last_checkpoint"]


def test_the_best_one_goes_when_a_better_one_is_there(
    tmp_path: Path, deletions: list[tuple[str, set[str]]]
) -> None:
    metric = Scripted(score=[1.0, 3.0, 2.0, 4.0])
    make_runner(tmp_path, 4, metric, save_best="score", rule="greater").train()
    assert [name for name, _ in deletions] == ["best_score_epoch_1.pth", "best_score_epoch_2.pth"]
    assert "best_score_epoch_2.pth" in deletions[0][1]
    assert "best_score_epoch_4.pth" in deletions[1][1]
    best = torch.load(tmp_path / "best_score_epoch_4.pth", weights_only=True)
    assert best["meta"]["epoch"] == 4 and "optimizer" not in best

    # The resumed run knows the best so far, and its file.
    metric = Scripted(score=[3.5, 5.0])
    make_runner(tmp_path, 6, metric, save_best="score", rule="greater", resume=True).train()
    assert [p.name for p in tmp_path.glob("best_*")] == ["best_score_epoch_6.pth"]


def test_the_best_ones_by_several_metrics(tmp_path: Path) -> None:
    metric = Scripted(score=[1.0, 3.0, 2.0], error_rate=[0.5, 0.6, 0.1])
    rules = dict(save_best=["score", "error_rate"], rule=["greater", "less"])
    make_runner(tmp_path, 3, metric, **rules).train()
    best = sorted(path.name for path in tmp_path.glob("best_*"))
    assert best == ["best_error_rate_epoch_3.pth", "best_score_epoch_2.pth"]


# Faults while a checkpoint is written.


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("cannot be pickled")


class PoisonSave(Hook):
    """Puts something into the second checkpoint that cannot be written."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if checkpoint["meta"]["epoch"] == 2:
            checkpoint["poison"] = Unpicklable()


@pytest.mark.fault(1, "a save that fails while it is pickled", "the older checkpoint intact")
def test_a_poisoned_save_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        make_runner(tmp_path, 3, hooks=(PoisonSave(),)).train()
    assert names(tmp_path) == ["epoch_1.pth", "last_checkpoint"]
    assert check_checkpoint(tmp_path / "epoch_1.pth") == (1, 2)


class FullDisk:
    """Lets so many files be written; the next one gets half of its content, or none of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: int, moment: str) -> None:
        self.left = files
        write, sync = Path.write_bytes, os.fsync

        def write_bytes(path: Path, data: bytes) -> int:
            self.left -= 1
            if self.left < 0 and moment == "write":
                write(path, data[: len(data) // 2])
                self.fail()
            return write(path, data)

        def fsync(descriptor: int) -> None:
            if self.left < 0:
                self.fail()
            sync(descriptor)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        monkeypatch.setattr(os, "fsync", fsync)

    def fail(self) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["write", "fsync"])
@pytest.mark.fault(1, "the disk full during a save", "stops with the message, the older intact")
def test_a_full_disk_stops_the_run_and_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    metric = Scripted(score=[1.0, 2.0])
    runner = make_runner(tmp_path, 3, metric, save_best="score", rule="greater", max_keep_ckpts=2)
    # epoch_1, pointer, best, epoch_1 with the best in it, pointer, epoch_2, pointer: the next is
    # the second best.
    FullDisk(monkeypatch, 7, moment)
    with pytest.raises(CheckpointNotWrittenError, match=r"No space.*earlier.*intact") as caught:
        runner.train()
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename) == tmp_path / "best_score_epoch_2.pth"
    monkeypatch.undo()
    whole = ["best_score_epoch_1.pth", "epoch_1.pth", "epoch_2.pth", "last_checkpoint"]
    assert names(tmp_path) == whole
    assert torch.load(tmp_path / whole[0], weights_only=True)["meta"]["epoch"] == 1
    assert check_checkpoint(tmp_path / "epoch_1.pth") == (1, 2)
    assert check_checkpoint(tmp_path / "epoch_2.pth") == (2, 4)


# Processes that are killed while they save.


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child process, which never returns from here."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def prepare(folder: Path, width: int) -> tuple[Runner, DurableCheckpointHook]:
    """A Runner that is ready to save; built once, and forked with its process."""
    best = dict(save_best="score", rule="greater")
    runner = make_runner(folder, 10**6, Scripted(score=[]), width=width, max_keep_ckpts=2, **best)
    _ = runner.train_loop, runner.val_loop  # they are built when they are read
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    loss = runner.model(torch.ones(1, width), mode="loss")["loss"]
    runner.optim_wrapper.update_params(loss)  # Adam has a state to save
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, DurableCheckpointHook))
    return runner, hook


def take_up(runner: Runner, hook: DurableCheckpointHook) -> None:
    found = newest_valid_checkpoint(runner.work_dir)
    if found is not None:
        runner.resume(str(found))
    hook.before_train(runner)


def train_and_validate(runner: Runner, hook: DurableCheckpointHook) -> int:
    """All that the hook does in an epoch, each better than the one before; returns its number."""
    runner.train_loop._iter += 2
    hook.after_train_epoch(runner)
    runner.train_loop._epoch += 1
    hook.after_val_epoch(runner, dict(score=float(runner.epoch)))
    return runner.epoch


def check_folder(folder: Path, finished: int) -> None:
    """What holds at every moment: whole files alone, and none lost that had been finished."""
    for path in run_checkpoints(folder):
        epoch, iteration = check_checkpoint(path)
        assert path.name == f"epoch_{epoch}.pth" and iteration == 2 * epoch
    for path in folder.glob("best_*"):
        best = torch.load(path, weights_only=True)
        assert path.name == f"best_score_epoch_{best['meta']['epoch']}.pth"
    numbers = [check_checkpoint(path).epoch for path in run_checkpoints(folder)]
    assert max(numbers, default=0) >= finished
    assert len(numbers) >= min(finished, 2)
    if finished:
        assert list(folder.glob("best_*")), "there is always a best one"


@pytest.mark.fault(1, "SIGKILL at a random moment of a save", "a valid checkpoint remains")
def test_killed_at_random_moments(tmp_path: Path, soak_count: Callable[[int, int], int]) -> None:
    runner, hook = prepare(tmp_path, WIDTH_TO_KILL)
    draw = random.Random(0)
    finished, inside = 0, 0
    times = soak_count(20, 100)
    for _ in range(times):
        reading, writing = os.pipe()

        def save_forever(pipe: int = writing) -> None:
            take_up(runner, hook)
            while True:
                os.write(pipe, b"begun\n")
                number = train_and_validate(runner, hook)
                os.write(pipe, f"{number}\n".encode())

        child = fork(save_forever)
        os.close(writing)
        with open(reading) as lines:
            assert lines.readline() == "begun\n"
            # No wait for something: the moment of the kill is what is drawn.
            time.sleep(draw.uniform(0, 0.3))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            said = ["begun", *lines.read().split()]
        assert os.WIFSIGNALED(status), "it was still saving"
        finished = max(finished, *(int(line) for line in said if line != "begun"), 0)
        inside += said[-1] == "begun"
        check_folder(tmp_path, finished)
    assert inside > times / 2, "most kills came within a save"


def die_at(operation: int) -> None:
    """Kill this process at its n-th operation on files; half of a file is written in between."""
    count = itertools.count(1)

    def step() -> None:
        if next(count) == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_halves(path: Path, data: bytes) -> int:
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            step()
            return file.write(data[len(data) // 2 :])

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            step()
            return function(*args, **kwargs)

        return stepping

    Path.write_bytes = write_halves
    Path.unlink = before(Path.unlink)
    for name in ("fsync", "replace"):
        setattr(os, name, before(getattr(os, name)))


@pytest.mark.fault(1, "SIGKILL before each operation on a file", "a valid checkpoint remains")
def test_killed_at_every_step_of_a_save(tmp_path: Path) -> None:
    runner, hook = prepare(tmp_path, WIDTH)

    def save(epochs: int, operation: int | None = None) -> int:
        def work() -> None:
            take_up(runner, hook)
            if operation is not None:
                die_at(operation)
            for _ in range(epochs):
                train_and_validate(runner, hook)

        return os.waitpid(fork(work), 0)[1]

    assert save(epochs=3) == 0
    finished = 3
    for operation in itertools.count(1):
        status = save(1, operation)
        if status == 0:  # it has fewer operations
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        check_folder(tmp_path, finished)
        finished = max(finished, check_checkpoint(newest_valid_checkpoint(tmp_path)).epoch)
    assert operation > 20, "five files and their folders, and what is pruned"
    check_folder(tmp_path, finished + 1)
