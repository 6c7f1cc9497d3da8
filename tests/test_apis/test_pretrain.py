"""One call on a folder: what it fills in, what it refuses, and that it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmconvnextv2.apis.pretrain import pretrain, pretrain_config
from mmconvnextv2.apis.run_folder import WorkDirError

pytestmark = pytest.mark.integration

DEFAULTS = dict(
    arch="tiny",
    epochs=100,
    warmup_epochs=5,
    batch_size=64,
    accumulate=1,
    base_lr=1.5e-4,
    image_size=224,
    num_workers=2,
    amp=False,
)


def test_config_follows_the_arguments() -> None:
    settings = {**DEFAULTS, "arch": "nano", "batch_size": 24, "accumulate": 8, "image_size": 192}
    cfg = pretrain_config(
        "photos",
        **settings,
    )
    assert cfg.model.backbone.arch == "nano"
    assert cfg.model.neck.in_channels == 640
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.5e-4 * 192 / 256)
    assert cfg.auto_scale_lr.base_batch_size == 192
    images = cfg.train_dataloader.dataset.dataset
    assert (images.data_root, images.split) == ("photos", None)
    assert images.pipeline[0].scale == 192
    assert [s.type for s in cfg.param_scheduler] == ["LinearLR", "CosineAnnealingLR"]
    assert (cfg.param_scheduler[0].end, cfg.param_scheduler[1].begin) == (5, 5)
    amp = pretrain_config("photos", **{**DEFAULTS, "amp": True})
    assert amp.optim_wrapper.type == "AutocastOptimWrapper"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arch="small"), "unknown arch 'small'"),
        (dict(image_size=100), "multiple of 32"),
        (dict(epochs=0), "epochs must be at least 1"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(accumulate=0), "accumulate must be at least 1"),
        (dict(warmup_epochs=101), "warmup_epochs must lie in 0 to 100"),
    ],
)
def test_bad_arguments(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain_config("photos", **{**DEFAULTS, **changes})


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pretrain(tmp_path / "nowhere", tmp_path / "out", arch="atto", num_workers=0)


def test_trains_and_returns_the_checkpoint(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(4):
        pixels = random.integers(0, 256, (64, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg")
    checkpoint = pretrain(
        tmp_path / "photos",
        tmp_path / "out",
        arch="atto",
        epochs=1,
        batch_size=2,
        accumulate=2,
        image_size=64,
        num_workers=0,
        amp=True,
        cfg_options={"default_hooks.checkpoint.interval": 1},
    )
    assert checkpoint == tmp_path / "out" / "epoch_1.pth"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state["backbone.stages.0.0.grn.gamma"].shape == (160,)
    assert state["neck.mask_token"].shape == (512,)

    def again(**how: object) -> Path:
        settings = dict(arch="atto", epochs=1, batch_size=2, image_size=64, num_workers=0)
        return pretrain(tmp_path / "photos", tmp_path / "out", **settings, **how)

    with pytest.raises(WorkDirError, match="holds a run already"):
        again()
    # A finished run has nothing left to do.
    before = checkpoint.read_bytes()
    assert again(resume=True, accumulate=2) == checkpoint == again(resume=checkpoint, accumulate=2)
    assert checkpoint.read_bytes() == before
