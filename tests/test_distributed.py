"""Two processes on the CPU: tools/dist_train.sh trains every task, saves and resumes; ranks agree.

A parameter without a gradient would stop the second step: DDP looks for none that is unused.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from free_port import free_port
from mmengine.config import Config
from narrowing import (
    CLASSES,
    narrow_classifier,
    narrow_detector,
    narrow_fcmae,
    narrow_segmentor,
    write_classes,
    write_coco,
    write_pictures,
    write_scenes,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def sample_config(task: str) -> Config:
    """The config of the built-in sample set."""
    (path,) = (CONFIGS / task).glob("*_sample.py")
    return Config.fromfile(path)


def launch(config: Config, work_dir: Path, *arguments: str) -> list[dict[str, Any]]:
    """Train in two processes; returns what each of them reports."""
    config.custom_imports.imports = [*config.custom_imports.imports, "rank_report"]
    config.custom_hooks = [*config.custom_hooks, dict(type="RankReportHook")]
    path = work_dir.with_suffix(".py")
    config.dump(path)
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}",
        "PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        [
            *("bash", ROOT / "tools" / "dist_train.sh", path, "2"),
            *("--work-dir", str(work_dir), *arguments),
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=work_dir.parent,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]
    return [json.loads((work_dir / f"rank{i}.json").read_text()) for i in (0, 1)]


def assert_ranks_agree(ranks: list[dict[str, Any]]) -> None:
    """Both trained one and the same model, on different pictures."""
    first, second = ranks
    for key in ("before", "after", "iterations", "wrapper", "metrics"):
        assert first[key] == second[key], key
    assert first["wrapper"] == "MMDistributedDataParallel"
    assert [rank["find_unused_parameters"] for rank in ranks] == [False, False]
    assert [rank["left_group"] for rank in ranks] == [True, True]
    moved = [name for name in first["after"] if first["after"][name] != first["before"][name]]
    assert any("backbone.stages" in name for name in moved)
    for step in zip(first["seen"], second["seen"], strict=True):
        assert not set(step[0]) & set(step[1]), "ranks share no picture in a step"


def pictures(ranks: list[dict[str, Any]], steps: slice) -> list[str]:
    """What both ranks together saw in some steps, sorted."""
    return sorted(path for rank in ranks for batch in rank["seen"][steps] for path in batch)


def saved_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_pre_training_saves_and_resumes(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 8, (70, 70))
    work_dir = tmp_path / "fcmae"

    def config(max_epochs: int) -> Config:
        config = narrow_fcmae(sample_config("fcmae"), images)
        config.train_cfg.max_epochs = max_epochs
        config.default_hooks.checkpoint.interval = 1
        return config

    ranks = launch(config(max_epochs=2), work_dir)
    assert_ranks_agree(ranks)
    assert ranks[0]["iterations"] == 4, "8 images, 2 ranks, 2 a batch, 2 epochs"
    every = sorted(str(path) for path in images.iterdir())
    assert pictures(ranks, slice(0, 2)) == pictures(ranks, slice(2, 4)) == every

    resumed = launch(config(max_epochs=3), work_dir, "--resume")
    assert_ranks_agree(resumed)
    assert resumed[0]["iterations"] == 6
    assert resumed[0]["before"] == ranks[0]["after"]
    last, middle = (saved_weights(work_dir / f"epoch_{epoch}.pth") for epoch in (3, 2))
    assert not torch.equal(last["neck.prediction.weight"], middle["neck.prediction.weight"])


def test_classification(tmp_path: Path) -> None:
    images = write_classes(tmp_path / "images")
    config = narrow_classifier(sample_config("convnextv2"), images, batch_size=2)
    config.train_cfg.max_epochs = 1
    ranks = launch(config, tmp_path / "classification")
    assert_ranks_agree(ranks)
    assert ranks[0]["iterations"] == 2, "10 images, 2 ranks with 5 each, of which 2 batches of 2"
    assert len(set(pictures(ranks, slice(None)))) == 8
    assert ranks[0]["metrics"]["accuracy/top1"] % (100 / CLASSES) == 0, "of all ten images"
    assert "head.fc.weight" in saved_weights(tmp_path / "classification" / "epoch_1.pth")


def test_detection(tmp_path: Path) -> None:
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    config = sample_config("mask_rcnn")
    ann_file = write_coco(tmp_path / "coco", list(config.classes), count=4)
    config = narrow_detector(config, ann_file, batch_size=1)
    config.train_cfg.max_epochs = 1
    ranks = launch(config, tmp_path / "detection")
    assert_ranks_agree(ranks)
    assert ranks[0]["iterations"] == 2, "4 images, 2 ranks, 1 a batch"
    every = sorted(str(path) for path in (tmp_path / "coco" / "images").iterdir())
    assert pictures(ranks, slice(None)) == every
    assert 0 <= ranks[0]["metrics"]["coco/segm_mAP_50"] <= 1
    assert "roi_head.mask_head.conv_logits.weight" in saved_weights(
        tmp_path / "detection" / "epoch_1.pth"
    )


def segmentation(config: Config, tmp_path: Path, *arguments: str) -> dict[str, torch.Tensor]:
    """Two iterations, which are two epochs of four images; returns the weights that are saved."""
    scenes = write_scenes(tmp_path / "scenes")
    config = narrow_segmentor(config, scenes)
    config.train_cfg.update(max_iters=2, val_interval=2)
    ranks = launch(config, tmp_path / "segmentation", *arguments)
    assert_ranks_agree(ranks)
    assert ranks[0]["iterations"] == 2
    every = sorted(str(path) for path in (scenes / "images" / "training").iterdir())
    assert pictures(ranks, slice(0, 1)) == pictures(ranks, slice(1, 2)) == every
    assert 0 <= ranks[0]["metrics"]["mIoU"] <= 100
    return saved_weights(tmp_path / "segmentation" / "iter_2.pth")


def test_segmentation(tmp_path: Path) -> None:
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    weights = segmentation(sample_config("upernet"), tmp_path)
    assert "decode_head.conv_seg.weight" in weights


def test_segmentation_with_the_readme_s_way_around_sync_bn(tmp_path: Path) -> None:
    """The recipes for ADE20K have SyncBN, which needs a GPU once there are two processes."""
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    (path,) = (CONFIGS / "upernet").glob("*tiny_upernet_8xb2*_ade20k-512x512.py")
    config = Config.fromfile(path)
    assert config.model.decode_head.norm_cfg.type == "SyncBN"
    readme = (CONFIGS / "upernet" / "README.md").read_text()
    (options,) = re.findall(r"`--cfg-options ([^`]*norm_cfg[^`]*)`", readme)
    weights = segmentation(config, tmp_path, "--cfg-options", *options.split())
    assert weights["auxiliary_head.convs.0.bn.running_var"].isfinite().all()
