"""The sample set against independent rasterisers, brute-force counts and the packages' own data."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data
from skimage.measure import points_in_poly
from sklearn.datasets import load_digits

from mmconvnextv2.datasets.sample_set import (
    CLASSES,
    ClassificationSpec,
    DetectionSpec,
    PretrainSpec,
    SegmentationSpec,
    build_sample_set,
    builder,
    scenes,
)
from mmconvnextv2.datasets.sample_set.digits import load_digit_samples, render_digit
from mmconvnextv2.datasets.sample_set.photographs import PHOTOGRAPHS, load_photographs, random_crop
from mmconvnextv2.datasets.sample_set.polygons import mask_to_polygons

pytestmark = pytest.mark.unit

SMALL = dict(
    pretrain=PretrainSpec(num_train=6),
    classification=ClassificationSpec(num_train=25, num_val=12),
    detection=DetectionSpec(num_train=12, num_val=6),
    segmentation=SegmentationSpec(num_train=8, num_val=5),
)
TINY = dict(
    tasks=("pretrain", "detection"),
    pretrain=PretrainSpec(num_train=2),
    detection=DetectionSpec(num_train=2, num_val=2),
)
REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory):
    return build_sample_set(tmp_path_factory.mktemp("data") / "sample_set", **SMALL)


@pytest.fixture(scope="module")
def sources(sample_set):
    return json.loads((sample_set / "sources.json").read_text())


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def rasterise(polygons, height, width):
    """Test the centre of every pixel against every polygon; refuse polygons that overlap."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    count = np.zeros(height * width, dtype=int)
    for polygon in polygons:
        count += points_in_poly(centres, np.reshape(polygon, (-1, 2)))
    assert count.max(initial=0) <= 1
    return (count == 1).reshape(height, width)


def coco_split(sample_set, side):
    content = json.loads((sample_set / f"detection/annotations/instances_{side}.json").read_text())
    return content["images"], content["annotations"], content["categories"]


# polygons


def random_masks():
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width = rng.integers(1, 14, size=2)
        yield rng.random((height, width)) < rng.uniform(0.2, 0.95)
    ring = np.ones((9, 9), dtype=bool)
    ring[1:-1, 1:-1] = False
    ring[3:6, 3:6] = True  # a part inside the hole of another
    ring[4, 4] = False
    yield ring
    yield np.eye(5, dtype=bool)
    yield ~np.eye(5, dtype=bool)


def test_polygons_give_back_every_pixel():
    for mask in random_masks():
        assert np.array_equal(rasterise(mask_to_polygons(mask), *mask.shape), mask)


def test_polygons_give_back_every_pixel_in_pycocotools():
    coco_mask = pytest.importorskip("pycocotools.mask", reason="pycocotools comes with mmdet")
    for mask in random_masks():
        polygons = mask_to_polygons(mask)
        if polygons:
            encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))
            assert np.array_equal(coco_mask.decode(encoded).astype(bool), mask)


def test_polygon_of_a_rectangle():
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:3, 2:7] = True
    (polygon,) = mask_to_polygons(mask)
    corners = set(zip(polygon[::2], polygon[1::2], strict=True))
    assert len(polygon) == 8
    assert corners == {(2, 1), (7, 1), (7, 3), (2, 3)}


def test_polygons_of_nothing():
    assert mask_to_polygons(np.zeros((4, 4), dtype=bool)) == []


@pytest.mark.parametrize("mask", [np.ones((4, 4)), np.ones((1, 4, 4), dtype=bool)])
def test_polygons_refuse_what_is_no_mask(mask):
    with pytest.raises(ValueError, match="bool of shape"):
        mask_to_polygons(mask)


# photographs and digits


def test_photographs_are_the_packages_own():
    loaded = {**load_photographs("train"), **load_photographs("val")}
    assert list(loaded) == [p.name for p in PHOTOGRAPHS]
    for name in ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry"):
        assert np.array_equal(np.asarray(loaded[name]), getattr(data, name)())
    camera = np.asarray(loaded["camera"])
    assert np.array_equal(camera, np.repeat(data.camera()[..., None], 3, axis=2))


def test_stereo_pair_is_on_one_side():
    assert {p.side for p in PHOTOGRAPHS if p.name.startswith("motorcycle")} == {"train"}
    assert len({p.file for p in PHOTOGRAPHS}) == len(PHOTOGRAPHS)


def test_crop_is_a_piece_of_the_photograph():
    ramp = Image.fromarray(np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)).convert("RGB")
    rng = np.random.default_rng(0)
    pieces = np.lib.stride_tricks.sliding_window_view(np.asarray(ramp)[..., 0], (40, 40))[0]
    for _ in range(8):
        name, crop = random_crop(rng, {"ramp": ramp}, 40)
        assert name == "ramp"
        assert any(np.array_equal(c, p) for p in pieces for c in (crop[..., 0], crop[:, ::-1, 0]))


def test_split_starts_with_a_new_writer():
    target = load_digits().target
    train, val = load_digit_samples("train"), load_digit_samples("val")
    assert [s.index for s in (*train, *val)] == list(range(1797))
    assert [s.label for s in (*train, *val)] == target.tolist()
    # Every writer's block begins with the ten digits in order, three times.
    assert [s.label for s in val[:30]] == [*range(10)] * 3
    assert {s.label for s in val} == set(range(10))


def test_rendered_digit_keeps_its_shape():
    # Where the bitmap is plainly inked or plainly empty, so is the centre of the enlarged pixel.
    for sample in load_digit_samples("train")[:30]:
        opacity = render_digit(sample.ink, size=80, angle=0)
        rows = np.flatnonzero((sample.ink > 0).any(axis=1))
        columns = np.flatnonzero((sample.ink > 0).any(axis=0))
        ink = sample.ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        expected = ndimage.zoom(ink, np.divide(opacity.shape, ink.shape), order=1) > 0.425
        overlap = ((opacity >= 0.5) & expected).sum() / ((opacity >= 0.5) | expected).sum()
        assert overlap > 0.6
        mirrored = ((opacity[:, ::-1] >= 0.5) & expected).sum()
        assert sample.label in (0, 1, 8) or mirrored < ((opacity >= 0.5) & expected).sum()


def test_positive_angle_turns_counter_clockwise():
    bar = np.zeros((8, 8), dtype=np.float32)
    bar[:, 3:5] = 1
    opacity = render_digit(bar, size=80, angle=20)
    assert opacity[0].argmax() < opacity.shape[1] / 2 < opacity[-1].argmax()


# scenes


@pytest.mark.parametrize("spec", [DetectionSpec(), SegmentationSpec(), ClassificationSpec()])
def test_visible_masks_equal_painting_in_order(spec):
    samples = load_digit_samples("train")
    seen = Counter()
    for seed in range(25):
        stamps, masks = scenes._place_digits(np.random.default_rng(seed), spec, samples)
        owner = np.full((spec.image_size, spec.image_size), -1)
        full_areas = []
        for k, stamp in enumerate(stamps):
            rows, columns = stamp.window
            for r, c in zip(*np.nonzero(stamp.opacity >= 0.5), strict=True):
                owner[rows.start + r, columns.start + c] = k
            full_areas.append((stamp.opacity >= 0.5).sum())
        for k, mask in enumerate(masks):
            assert np.array_equal(mask, owner == k)
            assert mask.sum() >= 0.7 * full_areas[k]
        seen[len(stamps)] += 1
    low, high = spec.digits_per_image
    assert set(seen) == set(range(low, high + 1))


def test_semantic_map_agrees_with_masks():
    photographs, samples = load_photographs("val"), load_digit_samples("val")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scene = scenes.compose_scene(rng, DetectionSpec(), photographs, samples)
        expected = np.ones_like(scene.semantic_HW)
        near_edge = np.zeros(expected.shape, dtype=bool)
        for digit in scene.digits:
            expected[digit.mask_HW] = 2 + digit.sample.label
            edge = ndimage.binary_dilation(digit.mask_HW) & ~ndimage.binary_erosion(digit.mask_HW)
            near_edge |= ndimage.binary_dilation(edge, iterations=5)
        labelled = scene.semantic_HW != 0
        assert np.array_equal(scene.semantic_HW[labelled], expected[labelled])
        assert near_edge[~labelled].mean() > 0.9
        assert 0 < (~labelled).mean() < 0.25


def test_digits_are_brighter_than_any_ground():
    photographs, samples = load_photographs("train"), load_digit_samples("train")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scene = scenes.compose_scene(rng, DetectionSpec(), photographs, samples)
        inked = np.any([d.mask_HW for d in scene.digits], axis=0)
        ground = ~ndimage.binary_dilation(inked, iterations=12)
        assert scene.image_HWC[ground].max() <= round(0.45 * 255)
        for digit in scene.digits:
            colour = np.median(scene.image_HWC[digit.mask_HW], axis=0)
            assert (colour >= 155).all()


def test_too_many_digits_are_refused():
    spec = DetectionSpec(image_size=64, digits_per_image=(8, 8), digit_size=(40, 60))
    photographs, samples = load_photographs("val"), load_digit_samples("val")
    with pytest.raises(ValueError, match="8 digits of 40 to 60 px do not fit into 64 px"):
        scenes.compose_scene(np.random.default_rng(0), spec, photographs, samples)


# the written layouts


def test_no_source_of_val_was_seen_in_training(sources):
    seen = {"train": (set(), set()), "val": (set(), set())}
    for sides in sources.values():
        for side, records in sides.items():
            for record in records:
                seen[side][0].add(record["photograph"])
                seen[side][1].update(record["digit_samples"])
    assert not seen["train"][0] & seen["val"][0]
    assert not seen["train"][1] & seen["val"][1]
    assert list(sources["pretrain"]) == ["train"]
    assert all(names and samples for names, samples in seen.values())


def test_every_image_is_in_the_sources(sample_set, sources):
    for task, sides in sources.items():
        listed = {r["file"] for records in sides.values() for r in records}
        folder = sample_set / task
        assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*.jpg")}


def test_pretrain_is_a_flat_folder_of_images(sample_set):
    files = list((sample_set / "pretrain").iterdir())
    assert len(files) == 6 and {f.suffix for f in files} == {".jpg"}
    assert {Image.open(f).size for f in files} == {(160, 160)}


@pytest.mark.parametrize(("side", "count"), [("train", 25), ("val", 12)])
def test_imagenet_folders_hold_the_right_digits(sample_set, sources, side, count):
    target = load_digits().target
    records = sources["classification"][side]
    folders = sorted(path.name for path in (sample_set / "classification" / side).iterdir())
    assert folders == list(CLASSES)
    assert len(records) == count
    labels = Counter()
    for record in records:
        (sample,) = record["digit_samples"]
        assert record["file"].split("/")[:2] == [side, f"digit_{target[sample]}"]
        labels[target[sample]] += 1
        assert Image.open(sample_set / "classification" / record["file"]).size == (96, 96)
    assert max(labels.values()) - min(labels.values()) <= 1
    assert len({r["digit_samples"][0] for r in records}) == count


@pytest.mark.parametrize("side", ["train", "val"])
def test_coco_instances_are_exact(sample_set, sources, side):
    images, annotations, categories = coco_split(sample_set, side)
    target = load_digits().target
    assert [(c["id"], c["name"]) for c in categories] == [(d + 1, CLASSES[d]) for d in range(10)]
    assert [i["id"] for i in images] == list(range(1, len(images) + 1))
    assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
    shown = {image["id"]: [] for image in images}
    taken = {image["id"]: np.zeros((160, 160), dtype=int) for image in images}
    for annotation in annotations:
        mask = rasterise(annotation["segmentation"], 160, 160)
        rows, columns = np.nonzero(mask)
        left, top = columns.min(), rows.min()
        width, height = columns.max() - left + 1, rows.max() - top + 1
        assert annotation["bbox"] == [left, top, width, height]
        assert annotation["area"] == mask.sum() > 100
        assert annotation["iscrowd"] == 0
        assert annotation["category_id"] == target[annotation["digit_sample"]] + 1
        taken[annotation["image_id"]] += mask
        shown[annotation["image_id"]].append(annotation["digit_sample"])
    for image, record in zip(images, sources["detection"][side], strict=True):
        file = sample_set / "detection" / side / image["file_name"]
        assert Image.open(file).size == (image["width"], image["height"]) == (160, 160)
        assert taken[image["id"]].max() == 1  # visible parts exclude one another
        assert shown[image["id"]] == record["digit_samples"]
        assert image["photograph"] == record["photograph"]
        pixels = np.asarray(Image.open(file)).min(axis=2)
        inked = taken[image["id"]] == 1
        assert np.median(pixels[inked]) > 140 > np.median(pixels[~inked])


def test_coco_files_load_in_pycocotools(sample_set):
    coco_module = pytest.importorskip("pycocotools.coco", reason="pycocotools comes with mmdet")
    coco = coco_module.COCO(str(sample_set / "detection/annotations/instances_val.json"))
    for annotation in coco.anns.values():
        expected = rasterise(annotation["segmentation"], 160, 160)
        assert np.array_equal(coco.annToMask(annotation).astype(bool), expected)


@pytest.mark.parametrize(("side", "folder"), [("train", "training"), ("val", "validation")])
def test_ade20k_maps_show_the_digits_of_their_images(sample_set, sources, side, folder):
    target = load_digits().target
    maps = sorted((sample_set / "segmentation/annotations" / folder).iterdir())
    assert len(maps) == len(sources["segmentation"][side])
    for path, record in zip(maps, sources["segmentation"][side], strict=True):
        assert record["file"] == f"images/{folder}/{path.stem}.jpg"
        assert Image.open(sample_set / "segmentation" / record["file"]).size == (128, 128)
        labels = Image.open(path)
        assert labels.mode == "L" and labels.size == (128, 128)
        values = set(np.unique(np.asarray(labels)).tolist())
        assert values == {0, 1} | {2 + int(target[s]) for s in record["digit_samples"]}


# building


def test_same_seed_same_bytes(sample_set, tmp_path):
    again = build_sample_set(tmp_path / "again", **SMALL)
    assert digest(again) == digest(sample_set)


def test_other_seed_other_images(tmp_path):
    first = digest(build_sample_set(tmp_path / "a", **TINY))
    second = digest(build_sample_set(tmp_path / "b", seed=1, **TINY))
    images = [name for name in first if name.endswith(".jpg")]
    assert images and all(first[name] != second[name] for name in images)


def test_a_part_does_not_depend_on_what_else_is_built(sample_set, tmp_path):
    spec = SegmentationSpec(num_train=3, num_val=2)
    alone = build_sample_set(tmp_path / "alone", tasks=["segmentation"], segmentation=spec)
    built = {k: v for k, v in digest(alone).items() if k.startswith("segmentation/")}
    assert len(built) == 10
    assert built.items() <= digest(sample_set).items()


def test_second_call_returns_at_once(tmp_path, monkeypatch):
    root = build_sample_set(tmp_path / "set", **TINY)
    monkeypatch.setattr(builder, "_write_parts", None)
    # The order of the tasks does not matter, and what belongs to no asked task does not count.
    tasks = ("detection", "pretrain")
    other = SegmentationSpec(num_train=1)
    assert build_sample_set(root, **{**TINY, "tasks": tasks}, segmentation=other) == root


def test_other_parameters_need_overwrite(tmp_path):
    root = build_sample_set(tmp_path / "set", **TINY)
    before = digest(root)
    wanted = {**TINY, "pretrain": PretrainSpec(num_train=3), "seed": 4}
    message = "seed: 0 there, 4 asked; tasks.pretrain.num_train: 2 there, 3 asked"
    with pytest.raises(ValueError, match=message):
        build_sample_set(root, **wanted)
    assert digest(root) == before
    build_sample_set(root, overwrite=True, **wanted)
    assert len(list((root / "pretrain").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folder_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no sample set"):
        build_sample_set(tmp_path, overwrite=overwrite, **TINY)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def fail_at_detection(monkeypatch):
    def fail(folder, side, shown):
        next(iter(shown))
        raise RuntimeError("disk full")

    monkeypatch.setitem(builder._WRITERS, "detection", fail)


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    fail_at_detection(monkeypatch)
    with pytest.raises(RuntimeError, match="disk full"):
        build_sample_set(tmp_path / "set", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_older_set(tmp_path, monkeypatch):
    root = build_sample_set(tmp_path / "set", **TINY)
    before = digest(root)
    fail_at_detection(monkeypatch)
    with pytest.raises(RuntimeError, match="disk full"):
        build_sample_set(root, seed=1, overwrite=True, **TINY)
    assert digest(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_failed_rename_puts_the_older_set_back(tmp_path, monkeypatch):
    root = build_sample_set(tmp_path / "set", **TINY)
    before = digest(root)
    rename = Path.rename

    def fail_for_fresh(self, target):
        if self.name == "fresh":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_fresh)
    with pytest.raises(OSError, match="no"):
        build_sample_set(root, seed=1, overwrite=True, **TINY)
    assert digest(root) == before


def test_leftovers_of_a_killed_build_are_ignored(tmp_path):
    leftover = tmp_path / ".set.building-abc" / "fresh" / "pretrain"
    leftover.mkdir(parents=True)
    (leftover / "00000.jpg").write_bytes(b"half")
    root = build_sample_set(tmp_path / "set", **TINY)
    clean = build_sample_set(tmp_path / "clean", **TINY)
    assert digest(root) == digest(clean)
    assert (leftover / "00000.jpg").read_bytes() == b"half"


def test_unfinished_folder_is_refused(tmp_path):
    root = build_sample_set(tmp_path / "set", **TINY)
    (root / "sample_set.json").write_text("{")
    with pytest.raises(ValueError, match="no valid sample_set.json"):
        build_sample_set(root, **TINY)


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert (build_sample_set(tmp_path / "set", **TINY) / "sample_set.json").is_file()


def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        build_sample_set(tmp_path / "file", **TINY)
    with pytest.raises(OSError, match="cannot write the sample set below"):
        build_sample_set(tmp_path / "file" / "set", **TINY)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_parent_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write the sample set below"):
        build_sample_set(tmp_path / "set", **TINY)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(seed=-1), ValueError, "seed must not be negative, got -1"),
        (dict(seed=0.5), TypeError, "seed must be an integer, got 0.5"),
        (dict(tasks=["depth"]), ValueError, "tasks must be one or more of pretrain, .*depth"),
        (dict(tasks=[]), ValueError, "tasks must be one or more"),
        (dict(tasks="pretrain"), TypeError, "got the string 'pretrain'"),
        (dict(detection=SegmentationSpec()), TypeError, "expected DetectionSpec or None"),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        build_sample_set(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: PretrainSpec(num_train=0),
            ValueError,
            "PretrainSpec.num_train must be at least 1",
        ),
        (lambda: DetectionSpec(num_val=1.5), TypeError, "DetectionSpec.num_val must be an integer"),
        (lambda: DetectionSpec(image_size=80), ValueError, "digit_size must not exceed 80"),
        (lambda: DetectionSpec(digit_size=(60, 40)), ValueError, r"\(least, greatest\)"),
        (lambda: DetectionSpec(digits_per_image=(1,)), ValueError, "a pair"),
        (lambda: DetectionSpec(digits_per_image=(0, 2)), ValueError, "at least 1, got 0"),
        (lambda: DetectionSpec(brightness=0), ValueError, r"brightness must be in \(0, 1\], got 0"),
        (lambda: ClassificationSpec(digits_per_image=(1, 2)), ValueError, "has one label"),
    ],
)
def test_bad_specs(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_scaled_spec_keeps_the_proportions():
    spec = ClassificationSpec(num_train=7).scaled_to(192)
    assert spec == ClassificationSpec(image_size=192, digit_size=(96, 172), num_train=7)


# the command


@pytest.fixture
def command():
    path = REPO / "tools/dataset_converters/make_sample_set.py"
    spec = importlib.util.spec_from_file_location("make_sample_set", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_command_builds_what_was_asked_for(command, tmp_path, capsys):
    sizes = ["--segmentation-size", "64", "--segmentation-train", "2", "--segmentation-val", "1"]
    assert command([str(tmp_path / "set"), "--tasks", "segmentation", *sizes]) == 0
    assert capsys.readouterr().out.strip() == str((tmp_path / "set").resolve())
    images = sorted((tmp_path / "set/segmentation/images").rglob("*.jpg"))
    assert [Image.open(path).size for path in images] == [(64, 64)] * 3


def test_command_fails_in_one_line(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command([str(tmp_path / "file")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the sample set needs a folder")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
