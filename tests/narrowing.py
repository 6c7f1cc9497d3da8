"""Shipped configs made small enough for a test: few channels, a handful of images on disk.

Each `narrow_*` changes a config of its task in place and leaves everything else as shipped, also
its structure: norms, losses, samplers, hooks. Each `write_*` makes the images such a config reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

CHANNELS = (8, 8, 8, 16)
ARCH: dict[str, Any] = dict(depths=(1, 1, 1, 1), channels=CHANNELS)
SIDE = 64
"""Pixels of a picture for detection and of a crop for segmentation."""

CLASSES = 10
RECTANGLES = ((4, 6, 30, 40), (30, 10, 30, 36))


def write_pictures(folder: Path, count: int, size_HW: tuple[int, int], suffix: str = "png") -> Path:
    """Write noise as 0.png, 1.png and so on."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = random.integers(0, 256, (*size_HW, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{suffix}")
    return folder


def write_classes(folder: Path) -> Path:
    """Ten classes of one picture in both splits, laid out as ImageNet and as the sample set."""
    (folder / "meta").mkdir(parents=True)
    for split in ("train", "val"):
        for label in range(CLASSES):
            write_pictures(folder / split / f"digit_{label}", 1, (60, 80))
        lines = [f"digit_{label}/0.png {label}\n" for label in range(CLASSES)]
        (folder / "meta" / f"{split}.txt").write_text("".join(lines))
    return folder


def write_coco(folder: Path, categories: list[str], count: int = 2) -> Path:
    """Pictures with two rectangles each, as polygons; returns the annotation file."""
    write_pictures(folder / "images", count, (SIDE, SIDE))
    annotations = [
        dict(
            id=2 * i + j + 1,
            image_id=i + 1,
            category_id=j + 1,
            bbox=[x, y, w, h],
            area=w * h,
            segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
            iscrowd=0,
        )
        for i in range(count)
        for j, (x, y, w, h) in enumerate(RECTANGLES)
    ]
    content = dict(
        images=[
            dict(id=i + 1, file_name=f"{i}.png", width=SIDE, height=SIDE) for i in range(count)
        ],
        annotations=annotations,
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(categories)],
    )
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def write_scenes(folder: Path) -> Path:
    """Four pictures and maps a split as in ADE20K: 0 is nothing, 1 to 11 are classes."""
    random = np.random.default_rng(0)
    for split in ("training", "validation"):
        write_pictures(folder / "images" / split, 4, (80, 100), "jpg")
        (folder / "annotations" / split).mkdir(parents=True)
        for i in range(4):
            labels_HW = np.kron(random.integers(0, 12, (4, 5)), np.ones((20, 20)))
            path = folder / "annotations" / split / f"{i}.png"
            Image.fromarray(labels_HW.astype(np.uint8)).save(path)
    return folder


def narrow_fcmae(config: Config, images: Path, batch_size: int = 2) -> Config:
    """FCMAE on a folder of pictures."""
    config.model.backbone.arch = ARCH
    config.model.neck.update(in_channels=CHANNELS[-1], num_channels=16)
    _narrow_loaders(config, batch_size, data_root=str(images))
    return config


def narrow_classifier(config: Config, images: Path, batch_size: int = 4) -> Config:
    """A classifier, without weights to start from, on what `write_classes` made."""
    config.model.backbone.update(arch=ARCH, init_cfg=None)
    config.model.head.in_channels = CHANNELS[-1]
    _narrow_loaders(config, batch_size, data_root=str(images))
    return config


def narrow_detector(config: Config, ann_file: Path, batch_size: int = 2) -> Config:
    """Mask R-CNN, without weights to start from, on what `write_coco` made."""
    model = config.model
    model.backbone.update(arch=ARCH, init_cfg=None)
    model.neck.in_channels = list(CHANNELS)
    model.roi_head.bbox_head.fc_out_channels = 32
    model.train_cfg.rcnn.sampler.num = 16
    model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    for augment in model.data_preprocessor.get("batch_augments") or []:
        augment.size = (SIDE, SIDE)
    _narrow_loaders(
        config,
        batch_size,
        scale=(SIDE, SIDE),
        data_root="",
        ann_file=str(ann_file),
        data_prefix=dict(img=str(ann_file.parent / "images")),
    )
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = str(ann_file)
    return config


def narrow_segmentor(config: Config, scenes: Path, batch_size: int = 2) -> Config:
    """UperNet, without weights to start from, on what `write_scenes` made; norms as shipped."""
    model = config.model
    model.data_preprocessor.size = (SIDE, SIDE)
    model.backbone.update(arch=ARCH, init_cfg=None)
    model.decode_head.update(in_channels=CHANNELS, channels=8)
    if model.auxiliary_head is not None:
        model.auxiliary_head.update(in_channels=CHANNELS[2], channels=8)
    if model.test_cfg.mode == "slide":
        model.test_cfg.update(crop_size=(SIDE, SIDE), stride=(43, 43))
    _narrow_loaders(config, batch_size, scale=(4 * SIDE, SIDE), data_root=str(scenes))
    config.test_pipeline = config.test_dataloader.dataset.pipeline
    return config


def _narrow_loaders(
    config: Config, batch_size: int, scale: tuple[int, int] | None = None, **dataset: Any
) -> None:
    """Read the given data in the main process; `scale` replaces that of the pipelines."""
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = config.get(key)
        if loader is None:
            continue
        loader.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
        inner = loader.dataset.get("dataset", loader.dataset)
        inner.update(dataset)
        for step in inner.pipeline if scale is not None else []:
            if "scale" in step:
                step.scale = scale
            if "crop_size" in step:
                step.crop_size = (SIDE, SIDE)
