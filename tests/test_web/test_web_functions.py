"""What the page computes, without a browser and without gradio."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmconvnextv2 import web
from mmconvnextv2.apis.reconstruct import reconstruct
from mmconvnextv2.nn import random_masking
from mmconvnextv2.visualization.reconstruction import GridLayout
from mmconvnextv2.web import words
from mmconvnextv2.web.cells import cell_at, describe, draw_cells, draw_mask, enlarge, fit, toggle
from mmconvnextv2.web.reconstructor import Reconstructor
from mmconvnextv2.web.runs import command_for, find_runs, held_out_images, training_images
from mmconvnextv2.web.uploads import read_upload, shrink

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_upload_is_turned_upright(tmp_path: Path) -> None:
    pixels = noise(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_upload(tmp_path / "photo.png"), np.rot90(pixels, -1))


def test_uploads_that_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(21 * 2**20)
    Image.new("1", (9000, 9000)).save(tmp_path / "wide.png")
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(noise(50, 50)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    for name, reason in {
        "long.png": "has 21.0 MB, at most 20 MB are taken",
        "wide.png": "it has 9000x9000 pixels, at most 64 million",
        "notes.jpg": "no picture of a known kind",
        "empty.png": "empty",
        "cut.jpg": "truncated",
    }.items():
        with pytest.raises(ValueError, match=reason) as error:
            read_upload(tmp_path / name)
        assert name in str(error.value), "which file"
        assert str(tmp_path) not in str(error.value), "nothing of the server's folders"


def test_pictures_shrink_and_never_grow() -> None:
    picture = Image.fromarray(noise(50, 100))
    assert shrink(picture, 40).size == (40, 20)
    assert shrink(picture, 200).size == (100, 50)


@pytest.mark.parametrize("grid", [(5, 5), (2, 3), (7, 4)])
def test_a_mask_leaves_something_and_removes_something(grid: tuple[int, int]) -> None:
    cells = grid[0] * grid[1]
    for percent in range(0, 101, 5):
        visible = min(max(cells * (100 - percent) // 100, 1), cells - 1)
        mask = draw_mask(grid, percent / 100, seed=percent)
        assert mask.shape == grid
        assert cells - mask.sum() == visible, percent


def test_a_mask_is_drawn_as_in_pretraining() -> None:
    generator = torch.Generator().manual_seed(3)
    expected = random_masking(1, (6, 8), 0.6, cell_scale=2, generator=generator)[0]
    np.testing.assert_array_equal(draw_mask((6, 8), 0.6, seed=3, cell_scale=2), expected)
    assert (draw_mask((6, 8), 0.6, seed=4, cell_scale=2) != expected.numpy()).any()


def test_a_click_changes_one_cell() -> None:
    mask = np.array([[True, False], [True, True]])
    np.testing.assert_array_equal(toggle(mask, (0, 0)), [[False, False], [True, True]])
    np.testing.assert_array_equal(mask, [[True, False], [True, True]], "the old one is as it was")
    with pytest.raises(ValueError, match="one cell has to stay visible"):
        toggle(mask, (0, 1))
    assert describe(mask) == "3 of 4 cells removed (75%)"


def test_which_cell_is_clicked() -> None:
    # 3 rows of 20 pixels, 5 columns of 30
    for x in range(150):
        for y in range(60):
            assert cell_at((x, y), (150, 60), (3, 5)) == (y // 20, x // 30)
    assert cell_at((150, 60), (150, 60), (3, 5)) == (2, 4)
    assert cell_at((-1, -1), (150, 60), (3, 5)) == (0, 0)


def test_lines_lie_between_cells() -> None:
    picture = Image.new("RGB", (60, 40))
    brightness = np.asarray(draw_cells(picture, (2, 3)))[..., 0]
    assert np.flatnonzero(brightness[5]).tolist() == [20, 40]
    assert np.flatnonzero(brightness[:, 5]).tolist() == [20]


def test_a_picture_is_fitted_and_enlarged() -> None:
    pixels = noise(32, 64)
    np.testing.assert_array_equal(fit(Image.fromarray(pixels), (32, 32)), pixels[:, 16:48])
    np.testing.assert_array_equal(enlarge(pixels, 3), np.kron(pixels, np.ones((3, 3, 1))))


def test_the_legend_names_colours_and_shares() -> None:
    html = words.legend(
        {"sky": 0.25, "<b>": 0.75}, ["sky", "<b>", "sea"], [(1, 2, 3), (0, 0, 0), (9, 9, 9)]
    )
    first, second = html.split("</li>")[:2]
    assert "&lt;b&gt; <em>(not tinted)</em>" in first and "75.0%" in first
    assert "rgb(1, 2, 3)" in second and "sky" in second and "25.0%" in second
    assert "sea" not in html


def test_what_was_found_comes_best_first() -> None:
    html = words.found([{"class": "cat", "score": 0.5}, {"class": "dog", "score": 0.91}])
    assert html.index("dog") < html.index("0.91") < html.index("cat") < html.index("0.50")
    assert "Nothing" in words.found([])


def test_reconstructs_as_the_command_does(runs: Path) -> None:
    run = find_runs(runs)[0]["pretraining"]
    model = Reconstructor(run, CPU)
    path = training_images(run)[0]
    size = model.size_HW
    assert size == (160, 160) and model.grid_hw == (5, 5) and model.mask_ratio == 0.6

    panels = model.reconstruct(fit(Image.open(path), size), draw_mask((5, 5), 0.6, seed=7))
    grid = reconstruct(path, run.checkpoint, seed=7, num_images=1)
    layout = GridLayout.for_images(1, *size)
    for column, panel in enumerate(panels):
        left, top = layout.corner(0, column)
        box = (left, top, left + size[1] * layout.scale, top + size[0] * layout.scale)
        np.testing.assert_array_equal(enlarge(panel, layout.scale), grid.crop(box))


def test_rasters_are_refused(runs: Path) -> None:
    run = find_runs(runs)[0]["pretraining"]
    dataset = run.config.train_dataloader.dataset.dataset
    dataset.pipeline.insert(0, dict(type="LoadRaster", channels=4))
    with pytest.raises(ValueError, match="mmconvnextv2 reconstruct"):
        Reconstructor(run, CPU)


def test_the_newest_run_of_each_task_is_found(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    shutil.copytree(folder / "fcmae", folder / "newer")
    os.utime(folder / "newer" / "epoch_1.pth", (2e9, 2e9))
    (folder / "damaged").mkdir()
    (folder / "damaged" / "epoch_1.pth").write_bytes(b"half a checkpoint")
    found, problems = find_runs(folder)
    assert {task: run.checkpoint.parent.name for task, run in found.items()} == dict(
        pretraining="newer", detection="detection", segmentation="segmentation"
    )
    assert len(problems) == 1 and "damaged" in problems[0]
    alone, _ = find_runs(folder / "detection")
    assert list(alone) == ["detection"]
    assert find_runs(tmp_path) == ({}, [])
    with pytest.raises(FileNotFoundError, match="make demo"):
        find_runs(tmp_path / "nowhere")


def test_examples_are_of_the_runs_own_data(runs: Path) -> None:
    found, _ = find_runs(runs)
    data = runs.parent / "data"
    assert held_out_images(found["pretraining"]) == []
    names = [path.name for path in training_images(found["pretraining"], count=3)]
    assert names == ["0.png", "4.png", "7.png"], "the first, one in the middle, the last"
    (first, *_) = held_out_images(found["segmentation"])
    assert first.parent == data / "scenes" / "images" / "validation"
    found["detection"].config.val_dataloader.dataset.ann_file = str(data / "gone.json")
    assert held_out_images(found["detection"]) == []


@pytest.mark.parametrize("task", ["pretraining", "detection", "segmentation"])
def test_a_missing_run_is_answered_with_a_command_that_exists(task: str) -> None:
    text = words.missing(task, Path("work dirs"), Path("run/epoch_1.pth"))
    command = command_for(task, "work_dirs", None).replace("\\\n", "")
    assert command.split()[0] == "mmconvnextv2" and "make demo" in text
    assert "There is no" in text and ("run/epoch_1.pth" in text) == (task != "pretraining")
    program, name, *options = shlex.split(command)
    module = pytest.importorskip(f"mmconvnextv2.cli.{name}")
    module.parser().parse_args(options)


def test_without_gradio_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match="pip install -r requirements/web.txt"):
        web.serve("anywhere")
