"""The demo, narrowed: what it leaves, and that the figures come from its own log."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmconvnextv2.datasets.sample_set import (
    ClassificationSpec,
    DetectionSpec,
    PretrainSpec,
    SegmentationSpec,
    build_sample_set,
)

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("demo_tool", ROOT / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


SMALL_LOADERS = {
    f"{split}_dataloader.{key}": value
    for split in ("train", "val")
    for key, value in dict(batch_size=4, num_workers=0, persistent_workers=False).items()
}
OPTIONS = {
    "fcmae": {
        "train_cfg.max_epochs": 2,
        "train_dataloader.batch_size": 4,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "default_hooks.logger.interval": 1,
    },
    "classification": {**SMALL_LOADERS, "default_hooks.logger.interval": 1},
    "detection": {**SMALL_LOADERS, "default_hooks.logger.interval": 1},
    "segmentation": {
        **SMALL_LOADERS,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.checkpoint.interval": 2,
        "default_hooks.logger.interval": 1,
        "param_scheduler": [],
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sample_set(
        tmp_path_factory.mktemp("sample") / "set",
        pretrain=PretrainSpec(num_train=12),
        classification=ClassificationSpec(num_train=20, num_val=10),
        detection=DetectionSpec(num_train=4, num_val=2),
        segmentation=SegmentationSpec(num_train=4, num_val=2),
    )


@pytest.mark.slow
def test_leaves_what_it_promises(demo: ModuleType, data: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "out"
    arguments = demo.parse_args(
        ["--data", str(data), "--work-dir", str(work_dir), "--phases", *demo.PHASES]
    )
    demo.run(arguments, OPTIONS)

    metrics = json.loads((work_dir / "metrics.json").read_text())
    (scalars,) = (work_dir / "fcmae").glob("*/vis_data/scalars.json")
    logged = [json.loads(line)["loss"] for line in scalars.read_text().splitlines()]
    assert len(logged) == 6
    assert (metrics["fcmae_loss_first"], metrics["fcmae_loss_last"]) == (logged[0], logged[-1])
    assert 0.9 < metrics["fcmae_loss_first"] < 1.1
    assert 0 <= metrics["top1"] <= 100
    assert 0 <= metrics["mIoU"] <= 100
    assert 0 <= metrics["bbox_mAP_50"] <= 1
    assert 0 <= metrics["segm_mAP_50"] <= 1
    assert set(metrics["seconds"]) == set(demo.PHASES)

    state = torch.load(work_dir / "fcmae" / "epoch_2.pth", weights_only=True)["state_dict"]
    assert any(k.startswith("neck.") for k in state)
    report = (work_dir / "report.html").read_text()
    assert f"{logged[0]:.3f}" in report
    assert report.count("data:image/png;base64") == 8, "a curve and a picture a phase"
    assert "stays below its goal" in report, "two steps do not reach the goals"


def test_too_few_images_are_one_line(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    build_sample_set(data, tasks=("pretrain",), pretrain=PretrainSpec(num_train=3))
    arguments = ["--data", str(data), "--work-dir", str(tmp_path / "out")]
    assert demo.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("demo.py: 3 images do not fill one batch of 32")
    assert not (tmp_path / "out" / "metrics.json").exists()
