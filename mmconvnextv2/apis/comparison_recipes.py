"""The sample recipes with the user's labelled set in them, for comparisons and for `finetune`.

Model, optimizer and its rate come from ``configs/*/*_sample.py``. The data is the user's, and
augmentation is what suits any kind of image: crops, changes of scale, flips.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.filling import load_raster
from mmconvnextv2.apis.schedules import set_length
from mmconvnextv2.datasets.annotation_checks_coco import AnnotationError
from mmconvnextv2.datasets.image_reading import IMAGE_SUFFIXES, UnreadableImageError
from mmconvnextv2.datasets.image_scan import TooFewImagesError
from mmconvnextv2.datasets.normalization import Normalization
from mmconvnextv2.datasets.raster_reading import (
    RASTER_SUFFIXES,
    is_picture,
    read_raster_header,
)
from mmconvnextv2.nn import ARCHITECTURES
from mmconvnextv2.nn.convnextv2 import Arch
from mmconvnextv2.nn.missing import Missing

BASES = {
    "classification": "convnextv2/convnextv2-atto_fcmae-pre_1xb16-coslr-18e_sample.py",
    "detection": "mask_rcnn/mask-rcnn_convnextv2-atto_fpn_1xb4-1e_sample.py",
    "segmentation": "upernet/convnextv2-atto_upernet_1xb16-1000i_sample.py",
}
"""Config of each task."""

METRICS = {
    "classification": "accuracy/top1",
    "detection": "coco/segm_mAP",
    "segmentation": "mIoU",
}
"""What decides, by task."""

LAYOUTS = {
    "classification": "train/<class>/* and val/<class>/*",
    "detection": "annotations/instances_train.json, annotations/instances_val.json, train/, val/",
    "segmentation": "images/training/, images/validation/, annotations/training/*.png and "
    "annotations/validation/*.png",
}
"""Where each kind of labelled set has its files, relative to its folder."""

_MARKS = {
    "classification": ("train", "val"),
    "detection": (
        "annotations/instances_train.json",
        "annotations/instances_val.json",
        "train",
        "val",
    ),
    "segmentation": (
        "images/training",
        "images/validation",
        "annotations/training",
        "annotations/validation",
    ),
}

HEADERS_CHECKED = 500
"""Images, evenly spread, whose depth is looked at before they are read as 8-bit RGB."""

_IGNORED_LABEL = 255


@dataclass(frozen=True)
class RasterInput:
    """How images that are not 8-bit RGB are read and normalised.

    Args:
        normalization: what was measured on images of this kind, in pre-training for example.
        missing: "refuse" or "ignore" values that are missing.
        no_data: a number that stands for a missing value, beside NaN.
    """

    normalization: Normalization
    missing: Missing = "refuse"
    no_data: float | None = None

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.normalization.mean)


@dataclass(frozen=True)
class FineTuning:
    """What a recipe is filled in with, such as the settings that all rows of a comparison share.

    Args:
        data: folder of the labelled set, laid out as in `LAYOUTS`.
        task: a name of `LAYOUTS`.
        arch: of the encoder.
        steps: optimizer steps; the caller sets the length when None.
        image_size: side of the images in training, in pixels; the recipe's when None.
        batch_size: images of a step, to which the rate is scaled linearly; the recipe's when None.
        num_workers: processes that read images.
        raster: for images that are not 8-bit RGB.
        reduce_zero_label: label 0 of a map is unlabelled, as in ADE20K, and classes start at 1.
    """

    data: Path
    task: str
    arch: Arch
    steps: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    num_workers: int = 2
    raster: RasterInput | None = None
    reduce_zero_label: bool = False


def recognize_task(folder: Path) -> str:
    """Tell from its layout what a labelled set is for.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is laid out like none of `LAYOUTS`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    for task in ("detection", "segmentation", "classification"):
        if all((folder / mark).exists() for mark in _MARKS[task]):
            return task
    layouts = "".join(f"\n  {task}: {layout}" for task, layout in LAYOUTS.items())
    raise ValueError(f"{folder} is laid out like no labelled set; allowed are{layouts}")


def check_layout(folder: Path, task: str) -> None:
    """Refuse a folder that has not what a task needs.

    Raises:
        FileNotFoundError: it is not there, or lacks labels or images.
        ValueError: there is no such task.
    """
    if task not in LAYOUTS:
        raise ValueError(f"task must be one of {', '.join(LAYOUTS)}, got {task!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    missing = [mark for mark in _MARKS[task] if not (folder / mark).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}: for {task} a labelled set is laid out as "
            f"{LAYOUTS[task]}"
        )


def fine_tuning_config(settings: FineTuning) -> Config:
    """Fill in the recipe of a task; the encoder starts at random until `with_weights` is called.

    Raises:
        FileNotFoundError: a folder of the labelled set is not there.
        ValueError: an argument or the labelled set is outside what is allowed.
    """
    for name in ("steps", "image_size", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_layout(settings.data, settings.task)
    cfg = Config.fromfile(config_path(BASES[settings.task]))
    cfg.model.backbone.update(arch=settings.arch, init_cfg=None)
    if settings.raster is None:
        _refuse_deep_images(settings)
    else:
        cfg.model.backbone.in_channels = settings.raster.channels
        preprocessor = cfg.model.data_preprocessor
        preprocessor.update(mean=None, std=None)
        preprocessor["to_rgb" if settings.task == "classification" else "bgr_to_rgb"] = False
    _FILL[settings.task](cfg, settings)
    if settings.steps is not None:
        set_length(cfg, settings.steps)
    _set_loaders(cfg, settings)
    return cfg


def with_weights(cfg: Config, checkpoint: Path | None, inflate_stem: str) -> Config:
    """Let the encoder of a config start from a checkpoint, or at random.

    A random encoder has nothing to keep, so all its layers learn at the full rate.

    Args:
        cfg: what `fine_tuning_config` gives; it stays as it is.
        checkpoint: None for random weights.
        inflate_stem: "mean" or "sum", for a checkpoint of another number of channels.
    """
    cfg = copy.deepcopy(cfg)
    if checkpoint is not None:
        cfg.model.backbone.init_cfg = dict(
            type="Pretrained", checkpoint=str(checkpoint), inflate_stem=inflate_stem
        )
    elif "decay_rate" in (cfg.optim_wrapper.get("paramwise_cfg") or {}):
        cfg.optim_wrapper.paramwise_cfg.decay_rate = 1.0
    return cfg


def _sizes(arch: Arch) -> Mapping[str, Sequence[int]]:
    return ARCHITECTURES[arch] if isinstance(arch, str) else arch


def _channels(arch: Arch) -> list[int]:
    return list(_sizes(arch)["channels"])


def _load(settings: FineTuning) -> list[dict[str, Any]]:
    raster = settings.raster
    if raster is None:
        return [dict(type="LoadImageFromFile")]
    return [load_raster(raster.normalization, raster.missing, raster.no_data)]


def _normalize(settings: FineTuning) -> list[dict[str, Any]]:
    raster = settings.raster
    if raster is None:
        return []
    measured = raster.normalization
    return [
        dict(
            type="NormalizeChannels",
            mean=measured.mean,
            std=measured.std,
            low=measured.low,
            high=measured.high,
            missing=raster.missing,
        )
    ]


def _refuse_deep_images(settings: FineTuning) -> None:
    """Refuse what the usual loaders would cut to 8-bit RGB without a word."""
    paths = [
        path
        for path in settings.data.rglob("*")
        if path.suffix.lower() in RASTER_SUFFIXES
        and path.relative_to(settings.data).parts[0] != "annotations"
    ]
    for path in sorted(paths)[:: max(1, len(paths) // HEADERS_CHECKED)]:
        try:
            header = read_raster_header(path)
        except UnreadableImageError:
            continue  # kinds that the usual loaders read and the raster reader does not
        if not is_picture(path, header):
            raise ValueError(
                f"{path} has {header.channels} channels and numbers of type {header.dtype}, which "
                "would be cut to 8-bit RGB: convert the images, or use compare_initializations, "
                "which takes what tools/dataset_converters/measure_normalization.py has measured "
                "(--normalization)"
            )


def _fill_classification(cfg: Config, settings: FineTuning) -> None:
    size = settings.image_size or cfg.image_size
    suffixes = IMAGE_SUFFIXES if settings.raster is None else RASTER_SUFFIXES
    classes = _classes_of_folders(settings.data, suffixes)
    cfg.model.data_preprocessor.num_classes = cfg.model.head.num_classes = len(classes)
    cfg.model.head.in_channels = _channels(settings.arch)[-1]
    train = [
        *_load(settings),
        dict(type="RasterRandomResizedCrop", scale=size, crop_ratio_range=(0.4, 1.0)),
        dict(type="RandomFlip", prob=0.5),
        *_normalize(settings),
        dict(type="PackInputs"),
    ]
    test = [
        *_load(settings),
        dict(type="RasterCenterCrop", scale=size),
        *_normalize(settings),
        dict(type="PackInputs"),
    ]
    dataset = dict(
        type="CustomDataset",
        data_root=str(settings.data),
        metainfo=dict(classes=classes),
        extensions=tuple(sorted(suffixes)),
    )
    _set_datasets(
        cfg,
        dict(dataset, data_prefix="train", pipeline=train),
        dict(dataset, data_prefix="val", pipeline=test),
        batch_size=50,
    )


def _classes_of_folders(data: Path, suffixes: Collection[str]) -> tuple[str, ...]:
    """Names of the classes: folders of both parts, with images in each of train."""
    classes = {
        part: sorted(f.name for f in (data / part).iterdir() if f.is_dir())
        for part in ("train", "val")
    }
    names = classes["train"]
    if names != classes["val"] or len(names) < 2:
        raise ValueError(
            f"{data} needs the same classes, at least 2, as folders of train and val: "
            f"got {names} and {classes['val']}"
        )
    for folder in (data / "train" / name for name in names):
        if not any(file.suffix.lower() in suffixes for file in folder.rglob("*")):
            raise TooFewImagesError(f"no image in {folder}: add images of the class or remove it")
    return tuple(names)


def _fill_detection(cfg: Config, settings: FineTuning) -> None:
    size = settings.image_size or cfg.image_size[0]
    files = {part: f"annotations/instances_{part}.json" for part in ("train", "val")}
    classes = _classes_of_coco(*(settings.data / file for file in files.values()))
    model = cfg.model
    model.neck.in_channels = _channels(settings.arch)
    # As in the base: three blocks of stage 3 share a rate, and long stages need more steps.
    long = 4 + (_sizes(settings.arch)["depths"][2] - 1) // 3
    cfg.optim_wrapper.paramwise_cfg.num_layers = max(6, long)
    # Objects of any shape, of 16 to 256 pixels, and up to 100 in an image.
    model.rpn_head.anchor_generator.update(scales=[4, 8], ratios=[0.5, 1.0, 2.0])
    model.roi_head.bbox_head.num_classes = model.roi_head.mask_head.num_classes = len(classes)
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        proposals.update(nms_pre=1000, max_per_img=300)
    model.test_cfg.rcnn.max_per_img = 100
    resize = dict(type="Resize", scale=(size, size), keep_ratio=True)
    annotations = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
    train = [
        *_load(settings),
        annotations,
        resize,
        dict(type="RandomFlip", prob=0.5),
        *_normalize(settings),
        dict(type="PackDetInputs"),
    ]
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    test = [
        *_load(settings),
        resize,
        annotations,
        *_normalize(settings),
        dict(type="PackDetInputs", meta_keys=keys),
    ]
    dataset = dict(
        type="CocoDataset", data_root=f"{settings.data}/", metainfo=dict(classes=classes)
    )
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(settings.data / files["val"])
    _set_datasets(
        cfg,
        dict(
            dataset,
            ann_file=files["train"],
            data_prefix=dict(img="train/"),
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=train,
        ),
        dict(
            dataset,
            ann_file=files["val"],
            data_prefix=dict(img="val/"),
            test_mode=True,
            pipeline=test,
        ),
        batch_size=1,
    )


def _classes_of_coco(train_file: Path, val_file: Path) -> tuple[str, ...]:
    """Names of the categories, which both files share; each object of training has a mask."""
    train, val = _read_coco(train_file), _read_coco(val_file)
    classes, others = (tuple(c["name"] for c in content["categories"]) for content in (train, val))
    if not classes:
        raise AnnotationError(f"{train_file} names no categories")
    if classes != others:
        raise AnnotationError(
            f"{train_file} has {len(classes)} categories ({', '.join(classes[:5])}, ...) and "
            f"{val_file} has {len(others)} ({', '.join(others[:5])}, ...): both need the same, in "
            "one order"
        )
    objects = train["annotations"]
    bare = sum(not found.get("segmentation") for found in objects)
    if bare:
        raise AnnotationError(
            f"{train_file}: {bare:,} of {len(objects):,} objects have no mask (segmentation), and "
            "Mask R-CNN learns from boxes and masks: export them with polygons or RLE masks"
        )
    return classes


def _read_coco(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AnnotationError(f"{file} cannot be read as JSON: {error}") from error
    missing = {"images", "annotations", "categories"} - set(content)
    if missing:
        raise AnnotationError(
            f"{file} is no COCO annotation file: it lacks {', '.join(sorted(missing))}"
        )
    return content


def _fill_segmentation(cfg: Config, settings: FineTuning) -> None:
    size = settings.image_size or cfg.image_size
    classes = _classes_of_maps(settings)
    model = cfg.model
    model.data_preprocessor.size = (size, size)
    model.decode_head.update(in_channels=_channels(settings.arch), num_classes=len(classes))
    train = [
        *_load(settings),
        dict(type="LoadAnnotations"),
        dict(type="RandomResize", scale=(size, size), ratio_range=(0.8, 1.25), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(size, size)),
        dict(type="RandomFlip", prob=0.5),
        *_normalize(settings),
        dict(type="PackSegInputs"),
    ]
    test = [
        *_load(settings),
        dict(type="Resize", scale=(size, size), keep_ratio=True),
        dict(type="LoadAnnotations"),
        *_normalize(settings),
        dict(type="PackSegInputs"),
    ]
    dataset = dict(
        type="BaseSegDataset",
        data_root=str(settings.data),
        metainfo=dict(classes=classes),
        reduce_zero_label=settings.reduce_zero_label,
        img_suffix=_only_suffix(settings),
    )
    folders = {
        part: dict(img_path=f"images/{part}", seg_map_path=f"annotations/{part}")
        for part in ("training", "validation")
    }
    _set_datasets(
        cfg,
        dict(dataset, data_prefix=folders["training"], pipeline=train),
        dict(dataset, data_prefix=folders["validation"], test_mode=True, pipeline=test),
        batch_size=1,
    )


def _classes_of_maps(settings: FineTuning) -> tuple[str, ...]:
    """Names of the classes: their labels in the maps, up to the highest that occurs."""
    labels = {
        int(label)
        for path in sorted((settings.data / "annotations").glob("*/*.png"))
        for label in np.unique(np.asarray(Image.open(path)))
    } - {_IGNORED_LABEL}
    first = 1 if settings.reduce_zero_label else 0
    classes = tuple(str(label) for label in range(first, max(labels, default=0) + 1))
    if len(classes) < 2:
        raise ValueError(
            f"{settings.data / 'annotations'} has the labels {sorted(labels)}: two classes are "
            f"needed, numbered from {first}"
        )
    return classes


def _only_suffix(settings: FineTuning) -> str:
    allowed = IMAGE_SUFFIXES if settings.raster is None else RASTER_SUFFIXES
    files = (settings.data / "images").glob("*/*")
    suffixes = {file.suffix for file in files if file.suffix.lower() in allowed}
    if len(suffixes) != 1:
        raise ValueError(
            f"the images in {settings.data / 'images'} must all have one suffix, as mmseg finds "
            f"them by it: found {sorted(suffixes)}"
        )
    return suffixes.pop()


def _set_datasets(cfg: Config, train: dict[str, Any], val: dict[str, Any], batch_size: int) -> None:
    cfg.train_dataloader.dataset = dict(type="StatelessDataset", dataset=train)
    cfg.val_dataloader.dataset = val
    cfg.val_dataloader.batch_size = batch_size


def _set_loaders(cfg: Config, settings: FineTuning) -> None:
    train, workers = cfg.train_dataloader, settings.num_workers
    for loader in (train, cfg.val_dataloader):
        loader.update(num_workers=workers, persistent_workers=workers > 0)
    cfg.test_dataloader = cfg.val_dataloader
    if settings.batch_size is not None:
        cfg.optim_wrapper.optimizer.lr *= settings.batch_size / train.batch_size
        train.batch_size = settings.batch_size
    cfg.auto_scale_lr.base_batch_size = train.batch_size


_FILL: Mapping[str, Any] = {
    "classification": _fill_classification,
    "detection": _fill_detection,
    "segmentation": _fill_segmentation,
}


def count_validation_images(cfg: Config) -> int:
    """Number of images on which the rows are compared."""
    return count_images(cfg.val_dataloader.dataset)


def count_images(dataset: Mapping[str, Any]) -> int:
    """Number of images that a labelled set gives, by its config."""
    root = Path(dataset["data_root"])
    if dataset["type"] == "CocoDataset":
        content = _read_coco(root / dataset["ann_file"])
        images = {image["id"] for image in content["images"]}
        if dataset.get("filter_cfg", {}).get("filter_empty_gt", False):
            images &= {found["image_id"] for found in content["annotations"]}
        return len(images)
    prefix = dataset["data_prefix"]
    folder = root / (prefix if isinstance(prefix, str) else prefix["img_path"])
    suffixes: Sequence[str] = dataset.get("extensions") or (dataset["img_suffix"].lower(),)
    return sum(file.suffix.lower() in suffixes for file in folder.rglob("*"))
