"""A run that is stopped or killed at any step and resumed equals the uninterrupted one exactly.

All runs are processes of their own, started from a server that has imported everything once.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_run
import torch
from mmengine.config import Config
from narrowing import (
    narrow_classifier,
    narrow_detector,
    narrow_fcmae,
    narrow_segmentor,
    write_classes,
    write_coco,
    write_pictures,
    write_scenes,
)

from mmconvnextv2.engine.hooks.stop_on_signal import exit_code

pytest.importorskip("mmdet", reason="mmdet is not installed")
pytest.importorskip("mmseg", reason="mmseg is not installed")

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CONFIGS = Path(__file__).parents[1] / "configs"
EPOCHS = 3
PATIENCE = 300  # seconds that a run of a few steps may take on a machine busy with other things
# torch imports the second one at the first step of an optimizer.
PRELOADED = ["resume_run", "torch._dynamo", "mmdet.models", "mmseg.models", "matplotlib.pyplot"]
SAVED = ("state_dict", "optimizer", "param_schedulers", "ema_state_dict")


def fcmae(folder: Path) -> Config:
    images = write_pictures(folder / "images", 10, (80, 100))
    cfg = Config.fromfile(CONFIGS / "fcmae" / "fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py")
    return narrow_fcmae(cfg, images)


def classification(folder: Path) -> Config:
    """Femto's recipe: averaged weights, mixing, RandAugment, random erasing."""
    name = "convnextv2-femto_fcmae-pre_32xb32-coslr-600e_in1k.py"
    cfg = Config.fromfile(CONFIGS / "convnextv2" / name)
    cfg.optim_wrapper.optimizer.lr = 0.01
    return narrow_classifier(cfg, write_classes(folder / "classes"), batch_size=2)


def mask_rcnn(folder: Path) -> Config:
    categories = [f"digit_{digit}" for digit in range(10)]
    (path,) = (CONFIGS / "mask_rcnn").glob("*_sample.py")
    cfg = Config.fromfile(path)
    cfg.param_scheduler[1].end = EPOCHS
    return narrow_detector(cfg, write_coco(folder / "coco", categories, count=8))


def upernet(folder: Path) -> Config:
    (path,) = (CONFIGS / "upernet").glob("*_sample.py")
    cfg = Config.fromfile(path)
    warmup, fall = cfg.param_scheduler
    warmup.end = fall.begin = 2
    fall.end = 11
    return narrow_segmentor(cfg, write_scenes(folder / "scenes"), batch_size=3)


TASKS: dict[str, tuple[Callable[[Path], Config], bool, int]] = {
    # Whether the loop counts epochs, and the steps of the whole run.
    "fcmae": (fcmae, True, 15),
    "classification": (classification, True, 15),
    "mask_rcnn": (mask_rcnn, True, 12),
    "upernet": (upernet, False, 11),
}


class Task:
    """A task on a few images, and its uninterrupted run."""

    def __init__(self, name: str, folder: Path) -> None:
        make, by_epoch, self.steps = TASKS[name]
        cfg = make(folder)
        interval = 1 if by_epoch else 4
        cfg.train_cfg.update(dict(max_epochs=EPOCHS) if by_epoch else dict(max_iters=self.steps))
        if cfg.get("val_cfg"):
            cfg.train_cfg.val_interval = 2 * interval
        cfg.default_hooks.checkpoint.update(interval=interval, max_keep_ckpts=5)
        cfg.visualizer.vis_backends = []
        self.name, self.folder, self.config = name, folder, folder / "config.py"
        cfg.dump(self.config)
        self.runs = 0
        whole = self.new_folder()
        assert self.run(whole) == 0
        self.trace, self.saved = read_trace(whole), load(newest(whole))
        assert sorted(self.trace) == list(range(self.steps))
        assert len(set(self.trace.values())) == self.steps

    def new_folder(self) -> Path:
        self.runs += 1
        return self.folder / f"run{self.runs}"

    def run(self, work_dir: Path, **options: Any) -> int:
        """Run in a process of its own and return how it ended: minus the signal that ended it."""
        return wait_for([start(self.config, work_dir, **options)])[0]

    def check(self, work_dir: Path) -> None:
        """Compare all steps and the last checkpoint with those of the uninterrupted run."""
        assert read_trace(work_dir) == self.trace
        saved = load(newest(work_dir))
        assert saved["meta"]["iter"] == self.steps
        assert ("ema_state_dict" in saved) == (self.name == "classification")
        for key in SAVED:
            assert_same(saved.get(key), self.saved.get(key), key)


def start(config: Path, work_dir: Path, **options: Any) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    work_dir.mkdir(exist_ok=True)
    process = context.Process(
        target=resume_run.train, args=(config, work_dir), kwargs=options, daemon=False
    )
    process.start()
    return process


def wait_for(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert None not in codes, f"a run did not end within {PATIENCE} s"
    return codes


def read_trace(work_dir: Path, rank: int = 0) -> dict[int, str]:
    """What each step was; one that was done twice has to have been the same both times."""
    trace: dict[int, str] = {}
    for line in (work_dir / resume_run.TRACE.format(rank=rank)).read_text().splitlines():
        step = int(line.split()[0])
        assert trace.setdefault(step, line) == line
    return trace


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def newest(work_dir: Path) -> Path:
    return max(work_dir.glob("*.pth"), key=lambda path: load(path)["meta"]["iter"])


def assert_same(a: Any, b: Any, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b) and a.dtype == b.dtype, where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}.{i}")
    else:
        assert a == b, where


@pytest.fixture(scope="module", autouse=True)
def _importable(request: pytest.FixtureRequest) -> None:
    """Let the server of processes find the modules of this folder."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    patch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", params=list(TASKS))
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.fault(
    4,
    "run stopped (SIGTERM) at a random step, resumed, killed (SIGKILL) at another, resumed, with 0 "
    "and 2 loader workers: FCMAE, classification with EMA, Mask R-CNN, UperNet",
    "losses, rates, weights, optimizer and EMA bit-equal to the uninterrupted run's",
)
def test_an_interrupted_run_equals_the_uninterrupted_one(
    task: Task, soak_count: Callable[[int, int], int]
) -> None:
    for seed in range(soak_count(1, 20)):
        draw = random.Random(f"{task.name} {seed}")
        stopped_in = draw.randint(1, task.steps - 2)
        killed_in = draw.randint(stopped_in + 1, task.steps)
        workers = draw.sample([0, 2, 0], 3)
        work_dir = task.new_folder()

        stop = (stopped_in, signal.SIGTERM)
        assert task.run(work_dir, interrupt=stop, workers=workers[0]) == exit_code(signal.SIGTERM)
        start_from = newest(work_dir)
        assert start_from.name == f"iter_{stopped_in}.pth", "a step is finished and saved"
        assert len(read_trace(work_dir)) == stopped_in

        kill = (killed_in, signal.SIGKILL)
        ended = task.run(work_dir, resume_from=start_from, interrupt=kill, workers=workers[1])
        assert ended == -signal.SIGKILL
        assert len(read_trace(work_dir)) == killed_in - 1

        assert task.run(work_dir, resume_from=newest(work_dir), workers=workers[2]) == 0
        task.check(work_dir)


def test_the_comparison_sees_one_wrong_bit(task: Task) -> None:
    weights = task.saved["state_dict"].copy()
    assert_same(weights, task.saved["state_dict"], "weights")
    name = next(name for name, tensor in weights.items() if tensor.dtype == torch.float32)
    weights[name] = weights[name].clone()
    weights[name].view(torch.int32).view(-1)[-1] ^= 1
    with pytest.raises(AssertionError, match=f"weights.{name}"):
        assert_same(weights, task.saved["state_dict"], "weights")


@pytest.mark.fault(
    4,
    "run of 2 processes stopped within an epoch and resumed by 1",
    "goes on, says so, reads each image of the epoch once",
)
def test_another_number_of_processes_goes_on_and_says_so(tmp_path: Path) -> None:
    cfg = fcmae(tmp_path)  # 10 images, of which no batch of 1 is left over
    cfg.train_cfg.max_epochs = 2
    cfg.default_hooks.checkpoint.interval = 1
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != "ReconstructionHook"]
    cfg.visualizer.vis_backends = []
    cfg.dump(tmp_path / "config.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    work_dir, one_image = tmp_path / "run", {"train_dataloader.batch_size": 1}
    processes = [
        start(
            tmp_path / "config.py",
            work_dir,
            interrupt=(3, signal.SIGTERM),
            changes=one_image,
            environment=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(2)
    ]
    assert wait_for(processes) == [exit_code(signal.SIGTERM)] * 2
    resumed = start(
        tmp_path / "config.py", work_dir, resume_from=work_dir / "iter_3.pth", changes=one_image
    )
    assert wait_for([resumed]) == [0]
    steps = [list(map(int, line.split()[:3])) for line in read_lines(work_dir)]
    # Three steps of two images; then the last four of ten, and an epoch of ten, one by one.
    rest = [[3 + i, 0, 6 + i] for i in range(4)] + [[7 + i, 1, i] for i in range(10)]
    assert steps == [[0, 0, 0], [1, 0, 1], [2, 0, 2], *rest]
    log = "".join(path.read_text() for path in work_dir.glob("*/*.log"))
    assert "resumed with 1 (processes) x 1 (samples a batch), the checkpoint had 2 x 1" in log
    assert "an epoch has 10 iterations, it had 5" in log
    assert load(newest(work_dir))["meta"]["iter"] == 17


def read_lines(work_dir: Path) -> list[str]:
    return (work_dir / resume_run.TRACE.format(rank=0)).read_text().splitlines()
