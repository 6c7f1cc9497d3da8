"""tools/analysis_tools/find_duplicates.py: both ways to compare, the split, report and picture."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from mmconvnextv2.datasets.split_image_folder import SplitImageFolder

pytestmark = pytest.mark.integration

TOOL = Path(__file__).resolve().parents[2] / "tools" / "analysis_tools" / "find_duplicates.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("find_duplicates", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def deep(seed: int) -> np.ndarray:
    """A 16-bit picture of blobs."""
    noise = np.random.default_rng(seed).standard_normal((64, 64))
    values = sum(gaussian_filter(noise, sigma) * sigma for sigma in (1, 2, 4, 8))
    return (1000 + 30000 * (values - values.min()) / np.ptp(values)).astype(np.uint16)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Five 16-bit images; beside them one of other content and two copies."""
    known, others = tmp_path / "known", tmp_path / "others"
    (known / "sub").mkdir(parents=True)
    others.mkdir()
    for i in range(5):
        tifffile.imwrite(known / "sub" / f"{i}.tif", deep(i))
    tifffile.imwrite(others / "new.tif", deep(9))
    np.save(others / "same.npy", deep(1)[..., None])
    eight_bits = Image.fromarray((deep(2) >> 8).astype(np.uint8))
    eight_bits.transpose(Image.Transpose.ROTATE_90).save(others / "turned.jpg")
    return known, others


def run(tool: ModuleType, out_dir: Path, *arguments: object) -> dict:
    assert tool.main([*map(str, arguments), "--out-dir", str(out_dir)]) == 0
    return json.loads((out_dir / "duplicates.json").read_text())


def test_between_two_folders(tool, folders, tmp_path, capsys):
    known, others = folders
    found = run(tool, tmp_path / "out", known, others)
    assert (found["compared_with"], found["images"], found["unreadable"]) == (5, 3, {})
    exact, near = found["duplicates"]
    assert exact == dict(
        image=str(others / "same.npy"),
        copy_of=str(known / "sub" / "1.tif"),
        exact=True,
        similarity=1.0,
        orientation="as it is",
    )
    assert (near["image"], near["copy_of"]) == (
        str(others / "turned.jpg"),
        str(known / "sub" / "2.tif"),
    )
    assert not near["exact"] and near["orientation"] == "turned by 90 degrees to the left"
    printed = capsys.readouterr().out
    assert "2 of 3 images have a duplicate in 5 others: 1 with the same pixels, 1 near" in printed
    assert (tmp_path / "out" / "duplicates.txt").read_text().splitlines() == [
        str(others / "same.npy"),
        str(others / "turned.jpg"),
    ]
    with Image.open(tmp_path / "out" / "duplicates.png") as picture:
        assert picture.width > 600 and len(set(picture.convert("L").tobytes())) > 50


def test_within_one_folder_and_with_a_broken_file(tool, folders, tmp_path, capsys):
    known, _ = folders
    tifffile.imwrite(known / "again.tif", deep(4))
    (known / "broken.png").write_bytes(b"nothing")
    found = run(tool, tmp_path / "out", known)
    (match,) = found["duplicates"]
    assert {match["image"], match["copy_of"]} == {
        str(known / "again.tif"),
        str(known / "sub" / "4.tif"),
    }
    assert list(found["unreadable"]) == [str(known / "broken.png")]
    printed = capsys.readouterr().out
    assert "among themselves" in printed and "1 files cannot be read" in printed

    (known / "again.tif").unlink()
    found = run(tool, tmp_path / "out", known)
    assert found["duplicates"] == []
    assert not (tmp_path / "out" / "duplicates.png").exists(), "no picture of an older search"


@pytest.mark.parametrize("group_by", ["file", "folder"])
def test_the_split_is_that_of_pretraining(tool, tmp_path, group_by):
    root = tmp_path / "images"
    for i in range(24):
        (root / f"case{i // 3}").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / f"case{i // 3}" / f"{i}.tif", deep(i % 12))
    parts = {
        part: set(
            SplitImageFolder(
                str(root), part=part, held_out_share=0.4, group_by=group_by
            ).load_data_list()
        )
        for part in ("train", "held_out")
    }
    # Every image has one copy; it counts where the two fell into different parts.
    number = {path: int(Path(path).stem) for part in parts.values() for path in part}
    trained = {number[path] % 12 for path in parts["train"]}
    expected = {path for path in parts["held_out"] if number[path] % 12 in trained}
    assert expected
    found = run(tool, tmp_path / "out", root, "--held-out-share", 0.4, "--group-by", group_by)
    assert {match["image"] for match in found["duplicates"]} == expected
    assert all(match["copy_of"] in parts["train"] for match in found["duplicates"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no image folder at"),
        (["empty"], "no image in"),
        (["known", "others", "--held-out-share", "0.1"], "not both"),
        (["known", "--held-out-share", "1"], "strictly between 0 and 1"),
        (["known", "others", "--min-similarity", "2"], "min_similarity must lie in (0, 1]"),
    ],
)
def test_errors_are_one_line(tool, folders, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / a) if a.isalpha() else a for a in arguments]
    assert tool.main([*arguments, "--out-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("find_duplicates.py: ") and message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
