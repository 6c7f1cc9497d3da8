"""Check a COCO annotation file before a training run meets it.

mmdet drops an annotation that it cannot use without a word, and misses an image when its turn
comes, hours into a run. The file is therefore read once more, as plain JSON, at the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.logging import print_log

CHECK_ALL_UP_TO = 10_000
"""Annotation files of at most this many images are checked whole."""

CHECK_SAMPLE = 2_000
"""Images of a larger file that are looked for, and whose annotations are checked in detail."""

TOLERANCE = 2.0
"""Pixels that a box or a mask may reach over the border of its image: published files do."""

_NAMED_AT_MOST = 20

_NEEDED_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}


class AnnotationError(ValueError):
    """Annotations that a run would stumble over or silently ignore; the message names the file."""


def check_coco_annotations(dataset: Any, num_classes: int | None = None) -> None:
    """Refuse a COCO annotation file that does not fit its images, the classes or the pipeline.

    The categories and the references from annotations to images are checked throughout. Images are
    looked for, and boxes and masks compared with them, for all images up to 10,000, and for 2,000,
    evenly spread, of a larger file.

    Args:
        dataset: An mmdet `CocoDataset`, lazily initialised or not.
        num_classes: How many classes the model tells apart; None leaves that unchecked.

    Raises:
        FileNotFoundError: The annotation file does not exist.
        AnnotationError: It is no COCO file, or has other classes than the dataset or the model; an
            annotation or an image entry names an image that is not there; boxes or masks lie
            outside of their image; masks are missing, broken or of a kind that the pipeline drops.
            The message lists the first of them.
    """
    content = _read(dataset)
    classes = list(dataset.metainfo.get("classes") or ())
    _check_classes(dataset.ann_file, content, classes, num_classes)
    images = {image["id"]: image for image in content["images"]}
    chosen = _choose(list(images))
    _refuse(
        dataset.ann_file,
        [
            *_missing_images(dataset, [images[i] for i in images if i in chosen]),
            *_bad_references(content),
        ],
    )
    taken = {c["id"] for c in content["categories"] if c["name"] in classes}
    checked = [
        a for a in content["annotations"] if a["image_id"] in chosen and a["category_id"] in taken
    ]
    used = [annotation for annotation in checked if _is_used(annotation)]
    if checked and not used:
        raise AnnotationError(
            f"{dataset.ann_file}: none of {len(checked)} annotations can be used: mmdet ignores "
            f"crowds, areas of 0 and boxes of less than a pixel"
        )
    rules = _MaskRules.of(dataset)
    _refuse(
        dataset.ann_file,
        [
            f"annotation {a['id']} of {image['file_name']}: {problem}"
            for a in used
            for image in [images[a["image_id"]]]
            for problem in _instance_problems(a, image, rules)
        ],
    )
    print_log(
        f"{dataset.ann_file}: {len(images)} images, {len(chosen)} of them checked; of their "
        f"{len(checked)} annotations {len(used)} are used",
        "current",
    )


def _refuse(path: str, problems: list[str]) -> None:
    if problems:
        more = len(problems) - _NAMED_AT_MOST
        lines = problems[:_NAMED_AT_MOST] + ([f"and {more} more"] if more > 0 else [])
        raise AnnotationError(f"{path} does not fit:\n  " + "\n  ".join(lines))


def _read(dataset: Any) -> dict[str, Any]:
    path, backend_args = dataset.ann_file, dataset.backend_args
    if not fileio.exists(path, backend_args):
        raise FileNotFoundError(f"the annotation file does not exist: {path}")
    try:
        content = json.loads(fileio.get_text(path, backend_args=backend_args))
    except ValueError as error:
        raise AnnotationError(f"{path} cannot be read as JSON: {error}") from error
    needed = ["images", "categories"] + ["annotations"] * (not dataset.test_mode)
    missing = [k for k in needed if k not in content] if isinstance(content, dict) else needed
    if missing:
        raise AnnotationError(f"{path} is no COCO annotation file: it lacks {', '.join(missing)}")
    # A test set whose annotations are kept back has none.
    content.setdefault("annotations", [])
    for part, keys in _NEEDED_KEYS.items():
        for i, entry in enumerate(content[part]):
            lacking = [key for key in keys if key not in entry]
            if lacking:
                raise AnnotationError(f"{path}: {part}[{i}] lacks {', '.join(lacking)}")
    return content


def _check_classes(
    path: str, content: dict[str, Any], classes: list[str], num_classes: int | None
) -> None:
    names = [category["name"] for category in content["categories"]]
    unknown = [name for name in classes if name not in names]
    if unknown or not classes:
        raise AnnotationError(
            f"{path} has no category {_few(unknown)} that the dataset declares; it has the "
            f"{len(names)} categories {_few(names)}: set metainfo=dict(classes=...) and the heads' "
            f"num_classes"
        )
    # mmdet numbers the labels in the order of the file, whatever the order of the classes.
    order = [name for name in names if name in classes]
    if order != classes:
        raise AnnotationError(
            f"{path}: labels follow the file's categories, {_few(order)}, and the dataset declares "
            f"its classes in another order, {_few(classes)}: names and labels would not match"
        )
    if num_classes is not None and num_classes != len(classes):
        raise AnnotationError(
            f"the model tells {num_classes} classes apart and the dataset of {path} declares "
            f"{len(classes)}: set num_classes={len(classes)} in the box head and in the mask head"
        )
    ignored = [name for name in names if name not in classes]
    if ignored:
        print_log(f"{path}: categories that are no class are ignored: {_few(ignored)}", "current")


def _few(names: list[str]) -> str:
    return ", ".join(map(str, names[:10])) + (f" and {len(names) - 10} more" * (len(names) > 10))


def _choose(image_ids: list[Any]) -> set[Any]:
    if len(image_ids) <= CHECK_ALL_UP_TO:
        return set(image_ids)
    positions = np.linspace(0, len(image_ids) - 1, CHECK_SAMPLE).round().astype(int)
    return {image_ids[i] for i in positions}


def _missing_images(dataset: Any, images: list[dict[str, Any]]) -> Iterator[str]:
    folder, backend_args = dataset.data_prefix.get("img", ""), dataset.backend_args
    for image in images:
        path = fileio.join_path(folder, image["file_name"], backend_args=backend_args)
        if not fileio.exists(path, backend_args):
            yield f"image {image['id']}: {path} does not exist"


def _bad_references(content: dict[str, Any]) -> Iterator[str]:
    """Annotations of images or categories that the file does not have: mmdet ignores them."""
    for part, key in (("images", "image_id"), ("categories", "category_id")):
        ids = {entry["id"] for entry in content[part]}
        for annotation in content["annotations"]:
            if annotation[key] not in ids:
                yield f"annotation {annotation['id']}: {key} {annotation[key]} is not in {part}"


def _is_used(annotation: dict[str, Any]) -> bool:
    """Whether mmdet takes the annotation for a training target at all."""
    width, height = annotation["bbox"][2:]
    skipped = annotation.get("ignore", False) or annotation.get("iscrowd", False)
    return not skipped and annotation["area"] > 0 and width >= 1 and height >= 1


class _MaskRules:
    """What the pipeline of a dataset asks of masks."""

    def __init__(self, needs_masks: bool, drops_rle: bool) -> None:
        self.needs_masks = needs_masks
        self.drops_rle = drops_rle

    @classmethod
    def of(cls, dataset: Any) -> _MaskRules:
        """Read the rules from the pipeline; a test set's masks are read by the metric alone."""
        loaders = [t for t in dataset.pipeline.transforms if getattr(t, "with_mask", False)]
        training = bool(loaders) and not dataset.test_mode
        return cls(training, training and any(not loader.poly2mask for loader in loaders))


def _instance_problems(
    annotation: dict[str, Any], image: dict[str, Any], rules: _MaskRules
) -> Iterator[str]:
    size_HW = (image["height"], image["width"])
    x, y, width, height = annotation["bbox"]
    if _outside([x, x + width], [y, y + height], size_HW):
        yield f"its box {annotation['bbox']} lies outside of the image, {_size(size_HW)}"
    mask = annotation.get("segmentation")
    if not mask:
        if rules.needs_masks:
            yield "it has no mask (segmentation)"
    elif isinstance(mask, dict):
        yield from _rle_problems(mask, size_HW, rules)
    else:
        yield from _polygon_problems(mask, size_HW)


def _rle_problems(
    mask: dict[str, Any], size_HW: tuple[int, int], rules: _MaskRules
) -> Iterator[str]:
    if rules.drops_rle:
        yield (
            "its mask is run-length encoded, and LoadAnnotations(poly2mask=False) drops such "
            "instances without a word: set poly2mask=True"
        )
    if not isinstance(mask.get("counts"), list | str) or "size" not in mask:
        yield "its run-length encoding lacks counts or size"
    elif tuple(mask["size"]) != size_HW:
        yield f"its mask has {_size(mask['size'])}, its image {_size(size_HW)}"


def _polygon_problems(polygons: list[list[float]], size_HW: tuple[int, int]) -> Iterator[str]:
    valid = [p for p in polygons if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
    if not valid:
        yield "none of its polygons has three corners or more, as pairs of x and y"
    elif any(_outside(p[0::2], p[1::2], size_HW) for p in valid):
        yield f"its mask reaches outside of the image, {_size(size_HW)}"


def _outside(xs: list[float], ys: list[float], size_HW: tuple[int, int]) -> bool:
    height, width = size_HW
    inside = (
        min(xs) >= -TOLERANCE
        and min(ys) >= -TOLERANCE
        and max(xs) <= width + TOLERANCE
        and max(ys) <= height + TOLERANCE
    )
    # Written so that NaN counts as outside.
    return not inside


def _size(size_HW: tuple[int, int] | list[int]) -> str:
    return f"{size_HW[1]}x{size_HW[0]} pixels"
