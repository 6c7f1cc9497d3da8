"""One call on a folder: what it fills in, what it refuses, and that all ways train the same."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import mmcv
import mmdet
import mmpretrain
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

import mmconvnextv2
from mmconvnextv2.apis.continue_pretraining import continued_run_config
from mmconvnextv2.apis.launch import USER_ERRORS
from mmconvnextv2.apis.pretrain import pretrain, pretrain_config
from mmconvnextv2.apis.results import RunResult
from mmconvnextv2.apis.run_config import checkpoint_of, config_of, task_of
from mmconvnextv2.apis.run_folder import WorkDirError, refuse_occupied_folder
from mmconvnextv2.apis.settings import PRETRAINING_EPOCHS, epochs_for
from mmconvnextv2.apis.software import read_software
from mmconvnextv2.apis.whole_run import accumulated_batches, run_config
from mmconvnextv2.cli.main import main
from mmconvnextv2.datasets.image_scan import TooFewImagesError
from mmconvnextv2.engine.hooks.durable_checkpoint import CheckpointNotWrittenError

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DEFAULTS = dict(
    arch="tiny",
    epochs=100,
    batch_size=64,
    accumulate=1,
    base_lr=1.5e-4,
    image_size=224,
    mask_ratio=0.6,
    num_workers=2,
    amp=False,
)
NARROW = {
    "model.backbone.arch": dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8], _delete_=True),
    "model.neck.in_channels": 8,
    "model.neck.num_channels": 16,
}
SMALL = dict(epochs=2, batch_size=2, effective_batch=4, image_size=64, num_workers=0)


@pytest.fixture(scope="module", autouse=True)
def _no_layout_of_configs() -> Iterator[None]:
    """Configs are written as they are: laying their text out takes half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images") / "photos"
    folder.mkdir()
    for i in range(9):
        pixels = random.integers(0, 256, (64, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    out = tmp_path_factory.mktemp("runs") / "run"
    return pretrain(photos, out, **SMALL, precision="bf16", cfg_options=NARROW)


def trace(folder: Path) -> list[float]:
    (scalars,) = folder.glob("*/vis_data/scalars.json")
    records = map(json.loads, scalars.read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def test_config_follows_the_arguments() -> None:
    settings = {**DEFAULTS, "arch": "nano", "batch_size": 24, "accumulate": 8, "image_size": 192}
    cfg = pretrain_config("photos", 240, **settings)
    assert cfg.model.backbone.arch == "nano"
    assert cfg.model.neck.in_channels == 640
    assert cfg.model.data_preprocessor.mask_ratio == 0.6
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.5e-4 * 192 / 256)
    assert cfg.optim_wrapper.accumulative_counts == 8
    assert cfg.auto_scale_lr.base_batch_size == 192
    images = cfg.train_dataloader.dataset.dataset
    assert (images.data_root, images.split) == ("photos", None)
    assert images.pipeline[0].scale == 192
    assert [s.type for s in cfg.param_scheduler] == ["LinearLR", "CosineAnnealingLR"]
    assert (cfg.param_scheduler[0].end, cfg.param_scheduler[1].begin) == (5, 5)
    assert cfg.default_hooks.logger.interval == 20, "1,000 iterations, 50 points"
    amp = pretrain_config("photos", 640, **{**DEFAULTS, "amp": True})
    assert amp.optim_wrapper.type == "AutocastOptimWrapper"


def test_epochs_by_the_number_of_images() -> None:
    counts = (1, 1_000, 1_001, 10_000, 100_000, 1_300_000)
    epochs = [epochs_for(PRETRAINING_EPOCHS, count) for count in counts]
    assert epochs == [800, 800, 400, 400, 200, 100]
    assert [accumulated_batches(8, effective) for effective in (None, 8, 32)] == [1, 1, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arch="small"), "unknown arch 'small'"),
        (dict(image_size=100), "multiple of 32"),
        (dict(epochs=0), "epochs must be at least 1"),
        (dict(mask_ratio=1.0), "mask_ratio must lie strictly between 0 and 1"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(base_lr=-1.0), "must be positive and finite"),
        (dict(batch_size=6, effective_batch=16), "multiple of batch_size=6, got 16: take 18"),
        (dict(num_workers=-1), "num_workers must be at least 0"),
        (dict(precision="fp16"), "precision must be one of auto, bf16, fp32"),
        (dict(device="tpu"), "device must be one of auto, cpu, cuda"),
        (dict(tracker="neptune"), "tracker must be one of wandb, mlflow"),
        (dict(cfg_options={"model.type.a": 1}), "cfg_options model.type.a"),
        (dict(batch_size=10), "9 images in .* do not fill one batch of 10: lower batch_size"),
    ],
)
def test_bad_arguments(changes: dict, message: str, photos: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "effective_batch": None, **changes}
    with pytest.raises(ValueError, match=message):
        pretrain(photos, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_what_is_not_there(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pretrain(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TooFewImagesError, match="no image in"):
        pretrain(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"weights\.pth does not exist"):
        pretrain(photos, tmp_path / "out", init=tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        pretrain(photos, tmp_path / "out", init=tmp_path / "empty")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no CUDA device; use cpu or auto"):
        pretrain(photos, tmp_path / "out", device="cuda")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(WorkDirError, match=r"not empty \(notes.txt\)"):
        pretrain(photos, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_no_space_is_said_before_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10_000, 10_000))
    with pytest.raises(CheckpointNotWrittenError, match="MB are free"):
        pretrain(photos, tmp_path / "out", **SMALL, cfg_options=NARROW)
    assert CheckpointNotWrittenError in USER_ERRORS
    monkeypatch.undo()
    assert (tmp_path / "out" / "config.py").is_file()
    refuse_occupied_folder(tmp_path / "out")  # what a failed start leaves is no obstacle


def test_what_a_run_returns(finished: RunResult) -> None:
    out = finished.out
    assert finished.task == "pretraining"
    assert (finished.config, finished.checkpoint) == (out / "config.py", out / "epoch_2.pth")
    assert checkpoint_of(out) == finished.checkpoint
    state = torch.load(finished.checkpoint, weights_only=True)["state_dict"]
    assert state["neck.mask_token"].shape == (16,)
    losses = trace(out)
    assert len(losses) == 8, "two epochs of four batches, the odd image left out"
    assert finished.metrics["first_loss"] == pytest.approx(losses[0])
    # mmengine's lines, too, have the mean of the last ten steps.
    assert finished.metrics["last_loss"] == pytest.approx(losses[-1])
    assert finished.seconds > 0 < finished.images_per_second
    assert list(out.glob("*/vis_data/events.out.tfevents.*")), "TensorBoard is always on"
    (log,) = out.glob("*/*.log")
    recorded = read_software(log.read_text())
    for package in (mmcv, mmpretrain, mmdet, mmseg, mmconvnextv2):
        assert recorded[package.__name__].split()[0] == package.__version__


def test_the_config_has_settings_alone(finished: RunResult) -> None:
    (only,) = finished.out.glob("*.py")
    cfg = Config.fromfile(only)
    assert not {"max_epochs", "data_root", "base_lr", "image_size"} & set(cfg)
    assert cfg.optim_wrapper.type == "AutocastOptimWrapper"
    assert (task_of(cfg), cfg.train_cfg.max_epochs) == ("pretraining", 2)


def test_call_command_and_saved_config_have_one_trace(
    finished: RunResult, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses as they were logged, in full precision: equal, not near."""
    options = [
        "model.backbone.arch.depths=[1,1,1,1]",
        "model.backbone.arch.channels=[8,8,8,8]",
        "model.backbone.arch._delete_=True",
        "model.neck.in_channels=8",
        "model.neck.num_channels=16",
    ]
    numbers = [w for name, value in SMALL.items() for w in (f"--{name}".replace("_", "-"), value)]
    words = ["--data", photos, "--out", tmp_path / "cli", "--precision", "bf16", *numbers]
    assert main(["pretrain", *map(str, words), "--cfg-options", *options]) == 0
    spec = importlib.util.spec_from_file_location("train_tool", ROOT / "tools" / "train.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    words = ["train.py", finished.config, "--work-dir", tmp_path / "config"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    assert tool.main() == 0
    assert trace(finished.out) == trace(tmp_path / "cli") == trace(tmp_path / "config")


def test_resume(finished: RunResult, photos: Path, tmp_path: Path) -> None:
    """A finished run has nothing left to do, and its config stays that of a fresh start."""
    out = tmp_path / "run"
    shutil.copytree(finished.out, out)
    settings = dict(**SMALL, precision="bf16", cfg_options=NARROW)
    with pytest.raises(WorkDirError, match="is not empty"):
        pretrain(photos, out, **settings)
    before = (out / "epoch_2.pth").read_bytes()
    again = pretrain(photos, out, **settings, resume=True)
    assert again.metrics == finished.metrics
    assert (out / "epoch_2.pth").read_bytes() == before
    cfg = Config.fromfile(out / "config.py")
    assert (cfg.resume, cfg.load_from) == (False, None)


def test_from_weights_a_part_is_held_out(finished: RunResult, photos: Path, tmp_path: Path) -> None:
    settings = dict(SMALL, effective_batch=None, epochs=1)
    result = pretrain(photos, tmp_path / "on", init=finished.out, **settings)
    assert result.metrics["held_out_loss"] == pytest.approx(1.0, abs=0.1)
    start = torch.load(tmp_path / "on" / "initial_weights.pth", weights_only=True)["state_dict"]
    weights = torch.load(finished.checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(start[name], weights[name]) for name in start)
    with pytest.raises(ValueError, match="arch='base' was asked for"):
        pretrain(photos, tmp_path / "b", init=finished.out, arch="base", **settings)
    assert not (tmp_path / "b").exists()
    cfg = continued_run_config(photos, finished.checkpoint, tmp_path / "on", resume=True)
    assert cfg.load_from == Config.fromfile(result.config).load_from
    assert cfg.load_from == str(tmp_path / "on" / "initial_weights.pth")


def test_the_config_of_a_checkpoint(finished: RunResult, tmp_path: Path) -> None:
    """Beside it, or in it; what it holds is read and not run."""
    assert config_of(finished.out).to_dict() == Config.fromfile(finished.config).to_dict()
    alone = shutil.copy(finished.checkpoint, tmp_path / "alone.pth")
    assert config_of(alone).model == config_of(finished.out).model
    content = torch.load(alone, weights_only=True)
    trap = tmp_path / "trap"
    content["meta"]["cfg"] = f"model = dict(type=open({str(trap)!r}, 'w').name)"
    torch.save(content, alone)
    with pytest.raises(ValueError, match="not written as plain values"):
        config_of(alone)
    assert not trap.exists()
    torch.save(content["state_dict"], alone)
    with pytest.raises(ValueError, match="names no config"):
        config_of(alone)


def test_the_cpu_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = pretrain_config("photos", 640, **DEFAULTS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cpu = run_config(cfg, Path("out"), torch.device("cpu"), None, {})
    assert cpu.runner_type == "CpuRunner"
    gpu = run_config(cfg, Path("out"), torch.device("cuda"), None, {})
    assert "runner_type" not in gpu
    assert "runner_type" not in cfg
