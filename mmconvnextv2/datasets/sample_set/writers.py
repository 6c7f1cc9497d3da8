"""Write scenes in the layouts of the field: flat folder, ImageNet folders, COCO instances, ADE20K.

Each writer takes the task's folder, the side of the split and its scenes, and returns one source
record an image: its file, relative to the folder, and the photograph and the handwritten samples
that it shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmconvnextv2.datasets.sample_set.photographs import Side
from mmconvnextv2.datasets.sample_set.polygons import mask_to_polygons
from mmconvnextv2.datasets.sample_set.scenes import PlacedDigit, Scene
from mmconvnextv2.datasets.sample_set.specs import CLASSES

Record = dict[str, Any]

_ADE20K_FOLDERS = {"train": "training", "val": "validation"}

_COCO_INFO = {
    "description": "Handwritten digits of scikit-learn on photographs of scikit-image and "
    "scikit-learn. Masks are of the visible part; polygons follow the borders of pixels.",
    "contributor": "mmconvnextv2.datasets.sample_set.build_sample_set",
    "version": "1",
}


def write_flat(folder: Path, side: Side, scenes: Iterable[Scene]) -> list[Record]:
    """Write unlabelled images: `00000.jpg`, ...

    Args:
        folder: The task's folder, created if it is not there.
        side: Side of the split; it is in the records' sources alone, since the folder is flat.
        scenes: What to write.

    Returns:
        One source record an image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index, scene in enumerate(scenes):
        file = f"{index:05d}.jpg"
        _save_jpeg(scene.image_HWC, folder / file)
        records.append(_source(file, scene))
    return records


def write_imagenet(folder: Path, side: Side, scenes: Iterable[Scene]) -> list[Record]:
    """Write one folder a class: `train/digit_0/00000.jpg`, ...

    Args:
        folder: The task's folder, created if it is not there.
        side: Side of the split.
        scenes: What to write, of one digit each.

    Returns:
        One source record an image.
    """
    for name in CLASSES:
        (folder / side / name).mkdir(parents=True, exist_ok=True)
    records = []
    for index, scene in enumerate(scenes):
        (digit,) = scene.digits
        file = f"{side}/{CLASSES[digit.sample.label]}/{index:05d}.jpg"
        _save_jpeg(scene.image_HWC, folder / file)
        records.append(_source(file, scene))
    return records


def write_coco(folder: Path, side: Side, scenes: Iterable[Scene]) -> list[Record]:
    """Write COCO instances: `annotations/instances_train.json` with images in `train/`.

    Category ids are 1 to 10 for the digits 0 to 9. `photograph` of an image and `digit_sample` of
    an annotation are additions to the format: the sources they show.

    Args:
        folder: The task's folder, created if it is not there.
        side: Side of the split.
        scenes: What to write.

    Returns:
        One source record an image.
    """
    (folder / side).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[Record] = []
    annotations: list[Record] = []
    records = []
    for index, scene in enumerate(scenes):
        file = f"{index:05d}.jpg"
        _save_jpeg(scene.image_HWC, folder / side / file)
        height, width = scene.semantic_HW.shape
        image = dict(id=index + 1, file_name=file, width=width, height=height)
        images.append({**image, "photograph": scene.photograph})
        for digit in scene.digits:
            # Ids start at 1: pycocotools takes the id 0 of an annotation for "not matched".
            ids = dict(id=len(annotations) + 1, image_id=index + 1)
            annotations.append({**ids, **_coco_instance(digit)})
        records.append(_source(f"{side}/{file}", scene))
    categories = [
        dict(id=label + 1, name=name, supercategory="digit") for label, name in enumerate(CLASSES)
    ]
    content = dict(
        info=_COCO_INFO,
        licenses=[],
        images=images,
        annotations=annotations,
        categories=categories,
    )
    annotation_file = folder / "annotations" / f"instances_{side}.json"
    annotation_file.write_text(json.dumps(content), encoding="utf-8")
    return records


def write_ade20k(folder: Path, side: Side, scenes: Iterable[Scene]) -> list[Record]:
    """Write ADE20K's folders: `images/training/00000.jpg` with `annotations/training/00000.png`.

    The maps hold 1 for the background, 2 to 11 for the digits 0 to 9, and 0 for unlabelled pixels.

    Args:
        folder: The task's folder, created if it is not there.
        side: Side of the split; "val" becomes `validation`.
        scenes: What to write.

    Returns:
        One source record an image.
    """
    split = _ADE20K_FOLDERS[side]
    for kind in ("images", "annotations"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    records = []
    for index, scene in enumerate(scenes):
        file = f"images/{split}/{index:05d}.jpg"
        _save_jpeg(scene.image_HWC, folder / file)
        Image.fromarray(scene.semantic_HW).save(folder / "annotations" / split / f"{index:05d}.png")
        records.append(_source(file, scene))
    return records


def _coco_instance(digit: PlacedDigit) -> Record:
    """Return an annotation without its ids: everything exact for the visible pixels."""
    rows = np.flatnonzero(digit.mask_HW.any(axis=1))
    columns = np.flatnonzero(digit.mask_HW.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return dict(
        category_id=digit.sample.label + 1,
        bbox=[left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        area=int(digit.mask_HW.sum()),
        # Polygons and not RLE, which some loaders take for a crowd and ignore.
        segmentation=mask_to_polygons(digit.mask_HW),
        iscrowd=0,
        digit_sample=digit.sample.index,
    )


def _source(file: str, scene: Scene) -> Record:
    samples = [digit.sample.index for digit in scene.digits]
    return dict(file=file, photograph=scene.photograph, digit_samples=samples)


def _save_jpeg(image_HWC: np.ndarray, path: Path) -> None:
    # Full colour resolution (subsampling 0): a digit differs from its ground by colour too.
    Image.fromarray(image_HWC).save(path, quality=95, subsampling=0)
