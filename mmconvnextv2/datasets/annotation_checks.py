"""Check the annotations of any dataset before a training run meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.registry import DATASETS

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
        check = CHECKS.get(_reader(type(inner)))
        if check is not None:
            check(inner, num_classes)


@contextmanager
def blame_annotations(*loaders: Mapping[str, Any] | None) -> Iterator[None]:
    """Let annotations explain why loaders and their metrics cannot be built.

    A file that is no JSON, or one of other classes, stops mmdet before any hook runs, with an error
    that names neither file nor classes. After such an error the datasets are checked; where nothing
    is found, the error passes.

    Args:
        loaders: Configs of the loaders that are being built, under their default scope.

    Raises:
        FileNotFoundError: As `check_annotations`.
        ValueError: As `check_annotations`.
    """
    try:
        yield
    except ValueError:
        for loader in loaders:
            for dataset in _innermost((loader or {}).get("dataset")):
                _check_unread(dataset)
        raise


def _innermost(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """The datasets' configs below all wrappers; what is built already has been read."""
    if isinstance(dataset, Mapping):
        inner = dataset.get("datasets") or [dataset.get("dataset")]
        if inner == [None]:
            yield dataset
        for child in inner:
            yield from _innermost(child)


def _check_unread(cfg: Mapping[str, Any]) -> None:
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = cfg["type"]
        cls = registry.get(kind) if isinstance(kind, str) else kind
        if isinstance(cls, type) and _reader(cls) in CHECKS:
            check_annotations(registry.build(dict(cfg, lazy_init=True)))


def _unwrapped(dataset: Any) -> Iterator[Any]:
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            yield from _unwrapped(inner)
    elif hasattr(dataset, "dataset"):
        yield from _unwrapped(dataset.dataset)
    else:
        yield dataset


def _reader(cls: type) -> str:
    classes = (parent for parent in cls.__mro__ if "load_data_list" in vars(parent))
    return next((parent.__name__ for parent in classes), "")
