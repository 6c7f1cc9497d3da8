"""`check_semantic_maps`: every kind of broken data set is refused with its file's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from PIL import Image

from mmconvnextv2.datasets import StatelessDataset, annotation_checks_seg
from mmconvnextv2.datasets.annotation_checks_seg import check_semantic_maps

pytestmark = pytest.mark.unit

CLASSES = ("background", "one", "two")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images of 12 x 8 pixels with maps of 0 (nothing), 1 to 3 and 255 (ignored)."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    for i in range(5):
        pixels = random.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.jpg")
        save_map(tmp_path, i, random.choice([0, 1, 2, 3, 255], (8, 12)))
    return tmp_path


def save_map(root: Path, i: int, labels: np.ndarray, dtype: type = np.uint8) -> None:
    Image.fromarray(labels.astype(dtype)).save(root / "maps" / f"{i}.png")


def dataset(root: Path, **options: object) -> BaseSegDataset:
    settings = dict(
        data_root=str(root),
        data_prefix=dict(img_path="images", seg_map_path="maps"),
        metainfo=dict(classes=CLASSES),
        reduce_zero_label=True,
        lazy_init=True,
    )
    return BaseSegDataset(**{**settings, **options})


def refused(root: Path, *words: str, **options: object) -> None:
    """The check fails, and its message has every one of the words."""
    with pytest.raises(ValueError) as caught:
        check_semantic_maps(dataset(root, **options))
    for word in words:
        assert word in str(caught.value)


def test_rasters_are_measured_as_the_pipeline_reads_them(tmp_path: Path) -> None:
    """Five channels, which Pillow cannot open; one map of another size is found."""
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    for i in range(2):
        np.save(tmp_path / "images" / f"{i}.npy", np.zeros((8, 12, 5), dtype=np.uint16))
        save_map(tmp_path, i, np.ones((8, 12)))
    options = dict(img_suffix=".npy", pipeline=[dict(type="LoadRaster", channels=5)])
    check_semantic_maps(dataset(tmp_path, **options), num_classes=3)
    save_map(tmp_path, 1, np.ones((12, 8)))
    refused(tmp_path, "1.png", **options)
    np.save(tmp_path / "images" / "0.npy", np.zeros((8, 12, 4), dtype=np.uint16))
    refused(tmp_path, "0.npy", "4 channels", **options)


@pytest.mark.parametrize("lazy_init", [True, False])
def test_accepts_what_fits_also_when_wrapped(root: Path, lazy_init: bool) -> None:
    good = dataset(root, lazy_init=lazy_init)
    check_semantic_maps(good, num_classes=3)
    for wrapper in (StatelessDataset(good), RepeatDataset(good, 2), ConcatDataset([good, good])):
        check_semantic_maps(wrapper, num_classes=3)


def test_names_a_folder_that_does_not_exist(root: Path) -> None:
    for key, name in (("img_path", "pictures"), ("seg_map_path", "annotations")):
        prefix = dict(img_path="images", seg_map_path="maps")
        prefix[key] = name
        with pytest.raises(FileNotFoundError, match=f"{root}/{name}"):
            check_semantic_maps(dataset(root, data_prefix=prefix))
    with pytest.raises(FileNotFoundError, match=f"{root}/val.txt"):
        check_semantic_maps(dataset(root, ann_file="val.txt"))


def test_names_no_folder_at_all(root: Path) -> None:
    refused(root, "no folder of maps", "seg_map_path", data_prefix=dict(img_path="images"))


def test_an_empty_folder(root: Path) -> None:
    refused(root, f"{root}/images holds no image that ends in .jpeg", img_suffix=".jpeg")


def test_an_image_without_a_map(root: Path) -> None:
    (root / "maps" / "3.png").unlink()
    refused(root, f"{root}/images/3.jpg: it has no map", f"{root}/maps/3.png")


def test_a_map_without_an_image(root: Path) -> None:
    (root / "images" / "3.jpg").rename(root / "images" / "3.jpeg")
    refused(root, f"{root}/maps/3.png: there is no image for it")
    (root / "part.txt").write_text("0\n1\n")
    check_semantic_maps(dataset(root, ann_file="part.txt"))


def test_a_listed_image_that_is_missing(root: Path) -> None:
    (root / "all.txt").write_text("0\n3\n")
    (root / "images" / "3.jpg").unlink()
    refused(root, f"{root}/images/3.jpg", "No such file", ann_file="all.txt")


def test_a_map_of_another_size(root: Path) -> None:
    save_map(root, 2, np.ones((12, 8)))
    refused(root, f"{root}/maps/2.png: the map has 8x12 pixels, its image 12x8")


def test_an_image_that_lies_on_its_side(root: Path) -> None:
    """A camera stores such pixels with the note to turn them, which the pipeline does."""
    path = root / "images" / "2.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    refused(root, "its image 8x12")
    save_map(root, 2, np.ones((12, 8)))
    check_semantic_maps(dataset(root))


@pytest.mark.parametrize("label", [4, 254])
def test_a_label_outside_the_classes(root: Path, label: int) -> None:
    save_map(root, 4, np.full((8, 12), label))
    refused(root, f"{root}/maps/4.png: label {label} is no class: allowed are 0 to 3, and 255")


def test_a_label_that_eight_bits_would_wrap_into_a_class(root: Path) -> None:
    save_map(root, 4, np.full((8, 12), 257), np.uint16)
    refused(root, f"{root}/maps/4.png: label 257 is no class")


def test_without_the_shift_the_last_label_is_one_too_many(root: Path) -> None:
    refused(root, "label 3 is no class: allowed are 0 to 2", reduce_zero_label=False)


def test_fewer_classes_than_the_files_have(root: Path) -> None:
    """A dataset class with a subset of its classes maps the others away."""
    options = dict(
        data_root=str(root),
        data_prefix=dict(img_path="images", seg_map_path="maps"),
        metainfo=dict(classes=("wall", "sky")),
        lazy_init=True,
    )
    save_map(root, 0, np.full((8, 12), 150))
    check_semantic_maps(ADE20KDataset(**options))
    save_map(root, 0, np.full((8, 12), 151))
    with pytest.raises(ValueError, match="label 151 is no class: allowed are 0 to 150"):
        check_semantic_maps(ADE20KDataset(**options))


def test_coloured_and_palette_maps(root: Path) -> None:
    palette = Image.fromarray(np.full((8, 12), 2, np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    palette.save(root / "maps" / "0.png")
    check_semantic_maps(dataset(root))
    palette.convert("RGB").save(root / "maps" / "0.png")
    refused(root, f"{root}/maps/0.png", "one channel", "has 3")


def test_broken_files(root: Path) -> None:
    (root / "images" / "1.jpg").write_bytes(b"no image")
    content = (root / "maps" / "3.png").read_bytes()
    (root / "maps" / "3.png").write_bytes(content[: len(content) // 2])
    refused(root, f"{root}/images/1.jpg: it cannot be read", f"{root}/maps/3.png: it cannot be")


def test_lists_twenty_files_at_most(root: Path) -> None:
    for i in range(5, 40):
        Image.new("RGB", (12, 8)).save(root / "images" / f"{i}.jpg")
    refused(root, "and 15 more")


def test_opens_a_sample_of_a_large_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation_checks_seg, "CHECK_ALL_UP_TO", 4)
    monkeypatch.setattr(annotation_checks_seg, "CHECK_SAMPLE", 2)
    opened = []
    read = annotation_checks_seg._labels
    monkeypatch.setattr(
        annotation_checks_seg, "_labels", lambda path, args: opened.append(path) or read(path, args)
    )
    check_semantic_maps(dataset(root))
    assert [Path(path).stem for path in opened] == ["0", "2"]
    (root / "maps" / "3.png").unlink()
    refused(root, "3.jpg: it has no map")


def test_a_head_for_another_number_of_classes(root: Path) -> None:
    with pytest.raises(ValueError, match="150 classes apart and the dataset has 3.*num_classes=3"):
        check_semantic_maps(dataset(root), num_classes=150)
    with pytest.raises(ValueError, match="names no classes"):
        check_semantic_maps(dataset(root, metainfo=None))


def test_another_kind_of_dataset() -> None:
    with pytest.raises(TypeError, match="BaseSegDataset.*got list"):
        check_semantic_maps([1, 2])
