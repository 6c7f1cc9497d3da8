"""Runs to show: three tasks of a few channels with untrained weights, made without training."""

from __future__ import annotations

import os
from pathlib import Path

import narrowing
import pytest
import torch
from mmengine.config import Config

import mmconvnextv2.datasets
import mmconvnextv2.engine
import mmconvnextv2.models  # noqa: F401
from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.run_config import build_model

DIGITS = [f"digit_{digit}" for digit in range(10)]


def write_run(folder: Path, config: Config, **meta: object) -> Path:
    """Leave what a run of one epoch would: a checkpoint with its config in it."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    config.model.backbone.init_cfg = None
    content = dict(
        meta=dict(cfg=config.pretty_text, epoch=1, iter=1, **meta),
        state_dict=build_model(config).state_dict(),
        message_hub={},
        optimizer={},
    )
    torch.save(content, folder / "epoch_1.pth")
    return folder


def shipped(name: str) -> Config:
    return Config.fromfile(config_path(name))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each task: fcmae/, detection/, segmentation/."""
    root = tmp_path_factory.mktemp("web")
    data, folder = root / "data", root / "runs"
    photos = narrowing.write_pictures(data / "photos", 8, (120, 140))
    fcmae = shipped("fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py")
    write_run(folder / "fcmae", narrowing.narrow_fcmae(fcmae, photos))

    coco = narrowing.write_coco(data / "coco", DIGITS)
    detector = shipped("mask_rcnn/mask-rcnn_convnextv2-atto_fpn_1xb4-1e_sample.py")
    write_run(
        folder / "detection",
        narrowing.narrow_detector(detector, coco),
        dataset_meta=dict(classes=tuple(DIGITS)),
    )

    scenes = narrowing.write_scenes(data / "scenes")
    segmentor = shipped("upernet/convnextv2-atto_upernet_1xb16-1000i_sample.py")
    write_run(
        folder / "segmentation",
        narrowing.narrow_segmentor(segmentor, scenes),
        dataset_meta=dict(classes=segmentor.classes, palette=segmentor.palette),
    )
    for age, task in enumerate(("fcmae", "detection", "segmentation")):
        os.utime(folder / task / "epoch_1.pth", (1e9 - age, 1e9 - age))
    return folder
