"""Check the annotations of any dataset before a training run meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmconvnextv2.datasets.annotation_checks_coco import check_coco_annotations
from mmconvnextv2.datasets.annotation_checks_seg import check_semantic_maps

Check = Callable[[Any, int | None], None]

CHECKS: dict[str, Check] = {
    "CocoDataset": check_coco_annotations,
    "BaseSegDataset": check_semantic_maps,
}
"""Check of a dataset by the name of the class that reads its annotations.

Names, since mmdet and mmseg need not be installed. The class that reads them is the one that
defines `load_data_list`: a dataset with the format of COCO is checked, whatever it is called, and a
child of `CocoDataset` with a format of its own is not.
"""


def check_annotations(dataset: Any, num_classes: int | None = None) -> None:
    """Refuse annotations that would break a run hours later, or that it would silently ignore.

    Datasets of other kinds than those of `CHECKS` are left alone.

    Args:
        dataset: A dataset, or wrappers around some: this project's, mmengine's, mmdet's.
        num_classes: How many classes the model tells apart; None leaves that unchecked.

    Raises:
        FileNotFoundError: An annotation file or a folder does not exist.
        ValueError: Annotations do not fit the images, the classes or the model; the message names
            the file.
    """
    for inner in _unwrapped(dataset):
        check = CHECKS.get(_reader(inner))
        if check is not None:
            check(inner, num_classes)


def _unwrapped(dataset: Any) -> Iterator[Any]:
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            yield from _unwrapped(inner)
    elif hasattr(dataset, "dataset"):
        yield from _unwrapped(dataset.dataset)
    else:
        yield dataset


def _reader(dataset: Any) -> str:
    classes = (cls for cls in type(dataset).__mro__ if "load_data_list" in vars(cls))
    return next((cls.__name__ for cls in classes), "")
