"""Check the maps of a semantic segmentation dataset before a training run meets them.

mmseg reads a map when its turn comes and casts it to 8 bits, so a wrong file shows up hours into a
run, as an index error on the GPU, or never.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mmengine import fileio
from PIL import ExifTags, Image

from mmconvnextv2.datasets.image_reading import UnreadableImageError
from mmconvnextv2.datasets.raster_transforms import LoadRaster

CHECK_ALL_UP_TO = 2_000
"""Datasets of at most this many images are checked whole."""

CHECK_SAMPLE = 500
"""Maps of a larger dataset that are opened, evenly spread over it."""

_NAMED_AT_MOST = 20


def check_semantic_maps(dataset: Any, num_classes: int | None = None) -> None:
    """Refuse a dataset whose maps do not fit its images and classes.

    Every image has to have a map and, where a folder is listed, every map an image. Maps are opened
    and compared with the size of their image and with the classes: all of them up to 2,000, and 500
    of a larger dataset.

    Args:
        dataset: An mmseg `BaseSegDataset`, lazily initialised or not, or wrappers around some
            (`StatelessDataset`, mmengine's own).
        num_classes: How many classes the model tells apart; None leaves that unchecked.

    Raises:
        FileNotFoundError: The folder of the images, that of the maps or the list of images does not
            exist.
        TypeError: `dataset` is no semantic segmentation dataset.
        ValueError: The dataset names no folder of maps, has no image, or not as many classes as the
            model; or maps are missing, superfluous, unreadable, of another size than their image,
            or hold labels that are no class. The message lists the files.
    """
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            check_semantic_maps(inner, num_classes)
    elif hasattr(dataset, "dataset"):
        check_semantic_maps(dataset.dataset, num_classes)
    elif hasattr(dataset, "seg_map_suffix"):
        _check_classes(dataset, num_classes)
        _check_places(dataset)
        problems = _problems(dataset)
        if problems:
            more = len(problems) - _NAMED_AT_MOST
            lines = problems[:_NAMED_AT_MOST] + ([f"and {more} more"] if more > 0 else [])
            raise ValueError("the semantic maps do not fit:\n  " + "\n  ".join(lines))
    else:
        raise TypeError(
            "check_semantic_maps takes an mmseg BaseSegDataset or a wrapper around some, "
            f"got {type(dataset).__name__}"
        )


def _check_classes(dataset: Any, num_classes: int | None) -> None:
    classes = dataset.metainfo.get("classes")
    if not classes:
        raise ValueError("the dataset names no classes: set metainfo=dict(classes=(...))")
    if num_classes is not None and num_classes != len(classes):
        raise ValueError(
            f"the model tells {num_classes} classes apart and the dataset has {len(classes)}: set "
            f"num_classes={len(classes)} in the decode head and in every auxiliary head"
        )


def _check_places(dataset: Any) -> None:
    for key, what in (("img_path", "images"), ("seg_map_path", "maps")):
        folder = dataset.data_prefix.get(key)
        if not folder:
            raise ValueError(
                f"the dataset names no folder of {what}: set data_prefix=dict({key}=...), "
                f"got data_prefix={dataset.data_prefix}"
            )
        # Other storage than a disk knows files alone.
        if dataset.backend_args is None and not Path(folder).is_dir():
            raise FileNotFoundError(f"the folder of {what} does not exist: {folder}")
    if dataset.ann_file and not fileio.exists(dataset.ann_file, dataset.backend_args):
        raise FileNotFoundError(f"the list of images does not exist: {dataset.ann_file}")


def _problems(dataset: Any) -> list[str]:
    """What is wrong with a dataset's files; names alone first, since that costs least."""
    samples = dataset.load_data_list()
    if not samples:
        raise ValueError(
            f"{dataset.data_prefix['img_path']} holds no image that ends in {dataset.img_suffix}"
        )
    problems = [
        f"{sample['img_path']}: it has no map, {sample['seg_map_path']} does not exist"
        for sample in samples
        if not fileio.exists(sample["seg_map_path"], dataset.backend_args)
    ]
    if not Path(dataset.ann_file).is_file():
        problems += _maps_without_image(dataset, samples)
    if problems:
        return problems
    step = 1 if len(samples) <= CHECK_ALL_UP_TO else len(samples) / CHECK_SAMPLE
    chosen = np.arange(0, len(samples), step).astype(int)
    return [line for i in chosen for line in _problems_of_a_map(dataset, samples[i])]


def _maps_without_image(dataset: Any, samples: list[dict[str, Any]]) -> list[str]:
    """Maps that nobody would miss: their image is not there, or has another suffix."""
    folder, backend_args = dataset.data_prefix["seg_map_path"], dataset.backend_args
    used = {sample["seg_map_path"] for sample in samples}
    names = fileio.list_dir_or_file(
        folder,
        list_dir=False,
        suffix=dataset.seg_map_suffix,
        recursive=True,
        backend_args=backend_args,
    )
    maps = sorted(fileio.join_path(folder, name, backend_args=backend_args) for name in names)
    images = f"{dataset.data_prefix['img_path']} with the suffix {dataset.img_suffix}"
    return [f"{path}: there is no image for it in {images}" for path in maps if path not in used]


def _problems_of_a_map(dataset: Any, sample: dict[str, Any]) -> list[str]:
    path = sample["seg_map_path"]
    try:
        image_HW = _size(dataset, sample["img_path"])
        labels = _labels(path, dataset.backend_args)
    except _UnreadableError as error:
        return [str(error)]
    if labels.ndim != 2:
        return [
            f"{path}: a map has one channel of class indices, and this one has "
            f"{labels.shape[-1]}: convert its colours"
        ]
    problems = []
    if labels.shape != image_HW:
        problems.append(
            f"{path}: the map has {labels.shape[1]}x{labels.shape[0]} pixels, its image "
            f"{image_HW[1]}x{image_HW[0]}"
        )
    # mmseg shifts labels first and maps them from the files' classes to the run's then.
    count = len(dataset.label_map or dataset.metainfo["classes"])
    largest = count if dataset.reduce_zero_label else count - 1
    ignored = dataset.ignore_index
    strange = [v for v in np.unique(labels).tolist() if not (0 <= v <= largest or v == ignored)]
    if strange:
        named = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        problems.append(
            f"{path}: label {named} is no class: allowed are 0 to {largest}, and {ignored} for "
            "pixels to ignore"
        )
    return problems


class _UnreadableError(Exception):
    """An image file that cannot be opened; the message names it."""


@contextmanager
def _opened(path: str, backend_args: dict[str, Any] | None) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(fileio.get(path, backend_args))) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:
        raise _UnreadableError(f"{path}: it cannot be read as an image ({error})") from error


def _size(dataset: Any, path: str) -> tuple[int, int]:
    """Height and width of an image as its pipeline will read it, from its header."""
    for transform in dataset.pipeline.transforms:
        if isinstance(transform, LoadRaster):
            try:
                header = transform.check_header(path)
            except UnreadableImageError as error:
                raise _UnreadableError(str(error)) from error
            return header.height, header.width
    with _opened(path, dataset.backend_args) as image:
        # Values from 5 on stand the image on its side, and OpenCV obeys them.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return image.size if turned else image.size[::-1]


def _labels(path: str, backend_args: dict[str, Any] | None) -> np.ndarray:
    with _opened(path, backend_args) as image:
        return np.asarray(image)
