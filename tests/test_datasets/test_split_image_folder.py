"""`SplitImageFolder`: two parts that never share an image and never move."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mmconvnextv2.datasets.image_scan import TooFewImagesError
from mmconvnextv2.datasets.split_image_folder import SplitImageFolder

pytestmark = pytest.mark.unit


def fill(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


def names_of(dataset: SplitImageFolder, root: Path) -> list[str]:
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [Path(info["img_path"]).relative_to(root).as_posix() for info in infos]


def both_parts(root: Path, **kwargs) -> tuple[list[str], list[str]]:
    parts = [SplitImageFolder(root, part, **kwargs) for part in ("train", "held_out")]
    train, held_out = (names_of(part, root) for part in parts)
    return train, held_out


MANY = [f"{folder}/{i:03d}.png" for folder in ("a", "b", "c") for i in range(100)]


def test_parts_make_up_the_folder_and_follow_the_hash(tmp_path: Path) -> None:
    train, held_out = both_parts(fill(tmp_path, MANY), held_out_share=0.2)
    assert sorted(train + held_out) == MANY and not set(train) & set(held_out)

    def fraction(name: str) -> float:
        return int(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), 16) / 16**16

    assert held_out == [name for name in MANY if fraction(name) < 0.2]
    # Five standard deviations around 60 of 300.
    assert 25 <= len(held_out) <= 95


def test_images_that_are_added_or_removed_move_no_other(tmp_path: Path) -> None:
    fill(tmp_path, MANY)
    train, held_out = both_parts(tmp_path, held_out_share=0.2)
    fill(tmp_path, [f"a/0_{i}.png" for i in range(30)])
    (tmp_path / "b" / "050.png").unlink()
    later_train, later_held_out = both_parts(tmp_path, held_out_share=0.2)
    gone = {"b/050.png"}
    assert set(train) - gone <= set(later_train) and set(held_out) - gone <= set(later_held_out)


def test_the_place_of_the_folder_does_not_count(tmp_path: Path, monkeypatch) -> None:
    first = both_parts(fill(tmp_path / "here", MANY[:40]), held_out_share=0.3)
    second = both_parts(fill(tmp_path / "else" / "where", MANY[:40]), held_out_share=0.3)
    assert first == second
    monkeypatch.chdir(tmp_path)
    dataset = SplitImageFolder("here", "held_out", held_out_share=0.3)
    assert names_of(dataset, Path("here")) == first[1]


def test_a_larger_share_keeps_what_a_smaller_one_held_out(tmp_path: Path) -> None:
    fill(tmp_path, MANY)
    smaller = both_parts(tmp_path, held_out_share=0.1)[1]
    larger = both_parts(tmp_path, held_out_share=0.5)[1]
    assert set(smaller) < set(larger)


def test_whole_folders_are_held_out(tmp_path: Path) -> None:
    names = [f"patient{p}/{scan}/{i}.png" for p in range(6) for scan in "xy" for i in range(3)]
    train, held_out = both_parts(fill(tmp_path, names), held_out_share=0.4, group_by="folder")

    def folders(part: list[str]) -> set[str]:
        return {name.rsplit("/", 1)[0] for name in part}

    assert train and held_out and not folders(train) & folders(held_out)


def test_labels_are_sub_folders_and_the_same_in_both_parts(tmp_path: Path) -> None:
    fill(tmp_path, MANY)
    for part in ("train", "held_out"):
        dataset = SplitImageFolder(tmp_path, part, 0.1, label_by_folder=True)
        assert dataset.metainfo["classes"] == ["a", "b", "c"]
        for name, i in zip(names_of(dataset, tmp_path), range(len(dataset)), strict=True):
            assert "abc"[dataset.get_data_info(i)["gt_label"]] == name[0]
    assert "gt_label" not in SplitImageFolder(tmp_path, "train", 0.1).get_data_info(0)


def test_labels_below_a_split_and_through_a_config(tmp_path: Path) -> None:
    fill(tmp_path, [f"train/{name}" for name in MANY[::10]])
    config = dict(
        type="SplitImageFolder",
        data_root=str(tmp_path),
        part="train",
        split="train",
        label_by_folder=True,
    )
    assert DATASETS.build(config).metainfo["classes"] == ["a", "b", "c"]


def test_loose_images_have_no_label(tmp_path: Path) -> None:
    fill(tmp_path, ["a/1.png", "2.png"])
    with pytest.raises(ValueError, match=r"1 are not, 2\.png for example"):
        SplitImageFolder(tmp_path, "train", 0.5, label_by_folder=True)


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["a.png", "b.png"])
    with pytest.raises(TooFewImagesError, match="part='held_out'.*is empty.*Change the share"):
        SplitImageFolder(tmp_path, "held_out", 1e-6)
    with pytest.raises(TooFewImagesError, match="part='train'"):
        SplitImageFolder(tmp_path, "train", 1 - 1e-6)


@pytest.mark.parametrize(
    "kwargs,match",
    [
        (dict(part="val"), "part must be"),
        (dict(part="train", held_out_share=0.0), "held_out_share must lie"),
        (dict(part="train", held_out_share=1.0), "held_out_share must lie"),
        (dict(part="train", group_by="patient"), "group_by must be"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SplitImageFolder(tmp_path, **kwargs)
