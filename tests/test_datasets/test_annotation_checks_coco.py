"""COCO annotations that would break a run or be ignored are refused, and the file is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS, HOOKS, DefaultScope
from PIL import Image
from pycocotools import mask as rle
from torch import nn

import mmconvnextv2.datasets.annotation_checks_coco as checks
from mmconvnextv2.datasets import StatelessDataset, StatelessInfiniteSampler, StatelessSampler
from mmconvnextv2.datasets.annotation_checks import blame_annotations
from mmconvnextv2.datasets.annotation_checks_coco import AnnotationError, check_coco_annotations
from mmconvnextv2.engine.hooks.annotation_check import AnnotationCheckHook

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmdet.datasets import CocoDataset, LVISV1Dataset  # noqa: E402

pytestmark = pytest.mark.unit

WIDTH, HEIGHT = 20, 10
CLASSES = ("cat", "dog")
SQUARE = [2.0, 1.0, 8.0, 1.0, 8.0, 7.0, 2.0, 7.0]

Content = dict[str, Any]


def content_of(images: int = 3) -> Content:
    """A correct file: each image shows one cat."""
    return dict(
        images=[
            dict(id=i, file_name=f"{i}.png", width=WIDTH, height=HEIGHT)
            for i in range(1, images + 1)
        ],
        categories=[dict(id=5, name="cat"), dict(id=7, name="dog")],
        annotations=[
            dict(
                id=100 + i,
                image_id=i,
                category_id=5,
                bbox=[2, 1, 6, 6],
                area=36,
                iscrowd=0,
                segmentation=[list(SQUARE)],
            )
            for i in range(1, images + 1)
        ],
    )


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CocoDataset]:
    """Write a file and its images; the dataset reads it as mmdet's configs say."""

    def build(
        content: Any, poly2mask: bool = True, masks: bool = True, **arguments: Any
    ) -> CocoDataset:
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        for i in range(1, 4):
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(images / f"{i}.png")
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        settings = dict(
            data_root=str(tmp_path),
            ann_file=path.name,
            data_prefix=dict(img="images/"),
            metainfo=dict(classes=CLASSES),
            pipeline=[
                dict(type="mmdet.LoadAnnotations", with_mask=masks, poly2mask=poly2mask),
            ],
            lazy_init=True,
        )
        with DefaultScope.overwrite_default_scope("mmdet"):
            return CocoDataset(**{**settings, **arguments})

    return build


def test_a_correct_file_passes(make: Callable[..., CocoDataset]) -> None:
    for poly2mask in (True, False):
        check_coco_annotations(make(content_of(), poly2mask=poly2mask), num_classes=2)


def edit(**values: Any) -> Callable[[Content], None]:
    return lambda content: content["annotations"][1].update(values)


def encoded(size_HW: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    mask = np.zeros(size_HW, np.uint8, order="F")
    mask[1:7, 2:8] = 1
    code = rle.encode(mask)
    return dict(size=list(code["size"]), counts=code["counts"].decode())


def drop(key: str) -> Callable[[Content], None]:
    return lambda content: content["annotations"][1].pop(key)


def shifted(dx: float, dy: float) -> list[list[float]]:
    return [[v + (dx, dy)[i % 2] for i, v in enumerate(SQUARE)]]


FLAWS = {
    "image of an annotation": (edit(image_id=99), "annotation 102: image_id 99 is not in images"),
    "category": (edit(category_id=9), "annotation 102: category_id 9 is not in categories"),
    "image file": (
        lambda c: c["images"][1].update(file_name="gone.png"),
        r"image 2: .*images/gone\.png does not exist",
    ),
    "box": (edit(bbox=[15, 1, 9, 6]), r"annotation 102 of 2\.png: its box .* 20x10 pixels"),
    "box of NaN": (edit(bbox=[float("nan"), 1, 6, 6]), "its box .* lies outside"),
    "mask to the right": (edit(segmentation=shifted(15, 0)), "its mask reaches outside"),
    "mask above": (edit(segmentation=shifted(0, -4)), "its mask reaches outside"),
    "no mask": (drop("segmentation"), r"annotation 102 of 2\.png: it has no mask"),
    "empty mask": (edit(segmentation=[]), "it has no mask"),
    "a line": (edit(segmentation=[[1, 1, 5, 5]]), "none of its polygons has three corners"),
    "odd number": (edit(segmentation=[[1, 1, 5, 5, 1, 5, 1]]), "none of its polygons"),
    "encoding of another size": (
        edit(segmentation=encoded((HEIGHT, WIDTH + 1))),
        "its mask has 21x10 pixels, its image 20x10",
    ),
    "broken encoding": (edit(segmentation=dict(size=[10, 20])), "lacks counts or size"),
    "no area": (drop("area"), r"annotations\[1\] lacks area"),
    "no category named dog": (
        lambda c: c["categories"][1].update(name="bird"),
        r"has no category dog .* cat, bird",
    ),
    "categories in another order": (
        lambda c: c["categories"].reverse(),
        "labels follow the file's categories, dog, cat",
    ),
    "no annotations": (lambda c: c.pop("annotations"), "it lacks annotations"),
    "boxes of less than a pixel": (
        lambda c: [a.update(bbox=[1, 1, 0.5, 3]) for a in c["annotations"]],
        "none of 3 annotations can be used",
    ),
}


@pytest.mark.parametrize("name", FLAWS)
def test_flaws_are_refused_and_the_file_is_named(
    make: Callable[..., CocoDataset], tmp_path: Path, name: str
) -> None:
    flaw, message = FLAWS[name]
    content = content_of()
    flaw(content)
    with pytest.raises(AnnotationError, match=message) as raised:
        check_coco_annotations(make(content))
    assert str(tmp_path / "annotations.json") in str(raised.value)


def test_run_length_masks_that_mmdet_drops(make: Callable[..., CocoDataset]) -> None:
    """Mmdet marks them as ignored; the check refuses what its own loader would throw away."""
    content = content_of()
    for annotation in content["annotations"]:
        annotation["segmentation"] = encoded()
    dropping = make(content, poly2mask=False)
    item = dropping.pipeline.transforms[0](
        dict(
            instances=[
                dict(bbox=[2, 1, 8, 7], bbox_label=0, ignore_flag=0, mask=encoded()),
            ],
            ori_shape=(HEIGHT, WIDTH),
        )
    )
    assert item["gt_ignore_flags"].tolist() == [True], "mmdet does as the check says"
    with pytest.raises(AnnotationError, match=r"poly2mask=True"):
        check_coco_annotations(dropping)
    check_coco_annotations(make(content, poly2mask=True))
    check_coco_annotations(make(content, poly2mask=False, masks=False))
    check_coco_annotations(make(content, poly2mask=False, test_mode=True))


def test_crowds_may_be_run_length_encoded(make: Callable[..., CocoDataset]) -> None:
    """COCO encodes its crowds so, and mmdet ignores crowds on purpose."""
    content = content_of()
    content["annotations"][1].update(iscrowd=1, segmentation=encoded())
    check_coco_annotations(make(content, poly2mask=False))


def test_a_border_within_the_tolerance(make: Callable[..., CocoDataset]) -> None:
    content = content_of()
    content["annotations"][0].update(bbox=[-1, -1, 22, 12], segmentation=shifted(-3, -2))
    check_coco_annotations(make(content))


def test_classes_of_the_model(make: Callable[..., CocoDataset]) -> None:
    with pytest.raises(AnnotationError, match=r"80 classes .*annotations\.json declares 2"):
        check_coco_annotations(make(content_of()), num_classes=80)


def test_default_classes_of_coco(make: Callable[..., CocoDataset]) -> None:
    """The usual slip: own annotations, and metainfo forgotten."""
    content = content_of()
    content["categories"] = [dict(id=1, name="digit_0")]
    with pytest.raises(AnnotationError, match="has no category person, bicycle"):
        check_coco_annotations(make(content, metainfo=None))


def test_missing_annotation_file(make: Callable[..., CocoDataset], tmp_path: Path) -> None:
    dataset = make(content_of())
    (tmp_path / "annotations.json").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "annotations.json"))):
        check_coco_annotations(dataset)


def test_truncated_annotation_file(make: Callable[..., CocoDataset]) -> None:
    with pytest.raises(AnnotationError, match=r"annotations\.json cannot be read as JSON"):
        check_coco_annotations(make(json.dumps(content_of())[:-20]))


def test_a_test_set_may_keep_its_annotations_back(make: Callable[..., CocoDataset]) -> None:
    content = content_of()
    del content["annotations"]
    check_coco_annotations(make(content, test_mode=True))


def test_a_large_set_is_sampled(
    make: Callable[..., CocoDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Existence for the sample alone, here the first and the last image; references for all."""
    monkeypatch.setattr(checks, "CHECK_ALL_UP_TO", 10)
    monkeypatch.setattr(checks, "CHECK_SAMPLE", 2)
    content = content_of(images=50)
    with pytest.raises(AnnotationError, match=r"image 50: .* does not exist") as raised:
        check_coco_annotations(make(content))
    assert str(raised.value).count("\n") == 1
    content["images"][49]["file_name"] = "1.png"
    check_coco_annotations(make(content))
    content["annotations"][20]["image_id"] = 99
    with pytest.raises(AnnotationError, match="image_id 99"):
        check_coco_annotations(make(content))


def test_the_message_names_at_most_twenty(make: Callable[..., CocoDataset]) -> None:
    with pytest.raises(AnnotationError, match="and 77 more") as raised:
        check_coco_annotations(make(content_of(images=100)))
    assert str(raised.value).count("\n") == 21


class Loader:
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset


class Head(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes


class Detector(nn.Module):
    def __init__(self, box: int, mask: int) -> None:
        super().__init__()
        self.roi_head = nn.Module()
        self.roi_head.bbox_head = Head(box)
        self.roi_head.mask_head = Head(mask)
        self.rpn_head = Head(1)


class Runner:
    """What the hook reads of mmengine's Runner."""

    def __init__(self, train: Any, val: Any = None, model: nn.Module | None = None) -> None:
        self.model = model or Detector(2, 2)
        self.train_dataloader = self.test_dataloader = Loader(train)
        self.val_loop = None if val is None else object()
        self.val_dataloader = Loader(val)


def flawed(make: Callable[..., CocoDataset]) -> CocoDataset:
    content = content_of()
    content["annotations"][0]["image_id"] = 99
    return make(content)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda dataset: dataset,
        StatelessDataset,
        lambda dataset: RepeatDataset(dataset, 2, lazy_init=True),
        lambda dataset: StatelessDataset(ConcatDataset([dataset, dataset], lazy_init=True)),
    ],
)
def test_hook_looks_into_wrappers(make: Callable[..., CocoDataset], wrap: Callable) -> None:
    AnnotationCheckHook().before_train(Runner(wrap(make(content_of()))))
    runner = Runner(wrap(flawed(make)))
    with pytest.raises(AnnotationError, match="image_id 99"):
        AnnotationCheckHook().before_train(runner)
    with pytest.raises(AnnotationError, match="image_id 99"):
        AnnotationCheckHook().before_test(runner)


def test_hook_checks_the_validation_set(make: Callable[..., CocoDataset]) -> None:
    images = torch.utils.data.TensorDataset(torch.zeros(1))
    AnnotationCheckHook().before_train(Runner(images))
    with pytest.raises(AnnotationError, match="image_id 99"):
        AnnotationCheckHook().before_train(Runner(images, flawed(make)))


def test_hook_compares_the_heads(make: Callable[..., CocoDataset]) -> None:
    dataset = make(content_of())
    with pytest.raises(AnnotationError, match="80 classes"):
        AnnotationCheckHook().before_train(Runner(dataset, model=Detector(80, 80)))
    with pytest.raises(ValueError, match=r"bbox_head 2, roi_head\.mask_head 80"):
        AnnotationCheckHook().before_train(Runner(dataset, model=Detector(2, 80)))
    AnnotationCheckHook().before_train(Runner(dataset, model=nn.Linear(1, 1)))


def test_hook_leaves_other_formats_alone(make: Callable[..., CocoDataset]) -> None:
    dataset = flawed(make)
    dataset.__class__ = LVISV1Dataset
    AnnotationCheckHook().before_train(Runner(dataset))
    dataset.__class__ = type("MyDataset", (CocoDataset,), {})
    with pytest.raises(AnnotationError):
        AnnotationCheckHook().before_train(Runner(dataset))


def test_hook_stands_in_the_root_registry() -> None:
    assert HOOKS.get("AnnotationCheckHook") is AnnotationCheckHook


@pytest.mark.parametrize("sampler", [StatelessSampler, StatelessInfiniteSampler])
def test_samplers_say_why_a_dataset_is_empty(
    make: Callable[..., CocoDataset], sampler: type
) -> None:
    loaded = dict(lazy_init=False, serialize_data=False)
    content = content_of()
    content["categories"] = [dict(id=5, name="digit_0")]
    dataset = make(content, metainfo=None, filter_cfg=dict(filter_empty_gt=True), **loaded)
    with pytest.raises(AnnotationError, match=r"annotations\.json has no category person"):
        sampler(StatelessDataset(dataset), seed=0)
    # Nothing is wrong with these annotations: every image is smaller than the dataset wants.
    dataset = make(content_of(), filter_cfg=dict(min_size=1000), **loaded)
    with pytest.raises(ValueError, match=f"{sampler.__name__}.*empty dataset"):
        sampler(StatelessDataset(dataset), seed=0)


def loader_of(root: Path, **settings: Any) -> dict[str, Any]:
    """A loader's config that reads the file that `make` wrote, below wrappers."""
    inner = dict(
        type="CocoDataset",
        data_root=str(root),
        ann_file="annotations.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[],
    )
    repeated = dict(type="RepeatDataset", times=2, dataset=dict(inner, **settings))
    concatenated = dict(type="ConcatDataset", datasets=[repeated])
    return dict(dataset=dict(type="StatelessDataset", dataset=concatenated))


def build(loader: dict[str, Any]) -> Any:
    """Build the last of three: one without annotations, none at all, the one that may be broken."""
    other = dict(dataset=dict(type="ImageFolder", data_root="unread"))
    with DefaultScope.overwrite_default_scope("mmdet"), blame_annotations(other, None, loader):
        return DATASETS.build(loader["dataset"])


def test_what_cannot_be_built_is_blamed_on_its_file(
    make: Callable[..., CocoDataset], tmp_path: Path
) -> None:
    """Mmdet reads annotations before any hook runs, and names neither file nor classes."""
    content = content_of()
    content["categories"] = [dict(id=5, name="digit_0")]
    make(content)
    own = dict(classes=("digit_0",))
    assert len(build(loader_of(tmp_path, metainfo=own))) == 6

    forgotten = loader_of(tmp_path, metainfo=dict())
    with DefaultScope.overwrite_default_scope("mmdet"), pytest.raises(ValueError) as bare:
        DATASETS.build(forgotten["dataset"])
    assert "json" not in str(bare.value)
    with pytest.raises(AnnotationError, match=r"annotations\.json has no category person"):
        build(forgotten)

    make(json.dumps(content)[:-20])
    with pytest.raises(AnnotationError, match=r"annotations\.json cannot be read as JSON"):
        build(loader_of(tmp_path, metainfo=own))


def test_what_annotations_are_not_to_blame_for(
    make: Callable[..., CocoDataset], tmp_path: Path
) -> None:
    make(content_of())
    with pytest.raises(ValueError, match="need at least one array"):
        build(loader_of(tmp_path, filter_cfg=dict(min_size=1000)))
    unknown = dict(dataset=dict(type="NoSuchDataset"))
    with pytest.raises(ValueError, match="elsewhere"), blame_annotations(unknown, {}):
        raise ValueError("elsewhere")
