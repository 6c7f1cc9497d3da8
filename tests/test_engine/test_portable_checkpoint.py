"""What training saves loads safely where this package was never imported, and resumes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

pytestmark = pytest.mark.integration

CONFIG = (
    Path(__file__).parents[2]
    / "configs"
    / "fcmae"
    / "fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py"
)


class StopHook(Hook):
    """End training early, with the schedule of the whole run."""

    def __init__(self, epoch: int | None) -> None:
        self.epoch = epoch

    def after_train_epoch(self, runner: Runner) -> None:
        runner.train_loop.stop_training = runner.epoch + 1 == self.epoch


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(6):
        pixels = random.integers(0, 256, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def train(
    images: Path, work_dir: Path, stop_after: int | None = None, resume: bool = False
) -> dict:
    """Train three epochs, or as many as `stop_after` says; returns the last checkpoint."""
    config = Config.fromfile(CONFIG)
    config.work_dir = str(work_dir)
    config.experiment_name = f"{work_dir.name}_{resume}"
    config.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    config.model.neck.update(in_channels=8, num_channels=16)
    loader = config.train_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader.dataset.dataset.data_root = str(images)
    loader.dataset.dataset.pipeline[0].scale = 64
    config.train_cfg.max_epochs = 3
    config.default_hooks.checkpoint.interval = 1
    config.resume = resume
    runner = Runner.from_cfg(config)
    runner.register_hook(StopHook(stop_after))
    runner.train()
    return torch.load(work_dir / f"epoch_{stop_after or 3}.pth", weights_only=True)


def test_safe_in_another_process(images: Path, tmp_path: Path) -> None:
    train(images, tmp_path, stop_after=1)
    script = (
        "import sys, torch\n"
        f"content = torch.load({str(tmp_path / 'epoch_1.pth')!r}, weights_only=True)\n"
        "assert 'mmengine' not in sys.modules\n"
        "print(len(content['state_dict']), content['meta']['epoch'])\n"
        "print(any(k.startswith('backbone.') for k in content['state_dict']),"
        " any(k.startswith('neck.') for k in content['state_dict']))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    count, epoch, encoder, decoder = run.stdout.split()
    assert (int(count) > 50, epoch, encoder, decoder) == (True, "1", "True", "True")


def test_resume_goes_on_where_training_stopped(images: Path, tmp_path: Path) -> None:
    whole = train(images, tmp_path / "whole")
    train(images, tmp_path / "parts", stop_after=2)
    resumed = train(images, tmp_path / "parts", resume=True)
    for key, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    ours, theirs = (run["message_hub"]["log_scalars"]["train/loss"] for run in (resumed, whole))
    assert ours["values"] == theirs["values"]
    assert len(ours["values"]) == 9
