"""The reconstruction grid, against pixels placed one by one.

Shape suffixes: N images, C channels, H and W pixels, h and w cells.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.files import save_png
from mmconvnextv2.visualization.reconstruction import (
    PANELS,
    REMOVED_GREY,
    GridLayout,
    reconstruction_grid,
    reconstruction_panels,
    unnormalize,
)

pytestmark = pytest.mark.unit

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def random_pictures(num: int, height: int, width: int, seed: int, channels: int = 3) -> np.ndarray:
    shape = (num, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def normalize(pictures_NHWC: np.ndarray) -> Tensor:
    channels = pictures_NHWC.shape[-1]
    mean, std = (np.resize(values, channels) for values in (MEAN, STD))
    x_NHWC = (pictures_NHWC.astype(np.float64) - mean) / std
    return torch.from_numpy(x_NHWC.transpose(0, 3, 1, 2)).float()


def random_cells(num: int, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(num, rows, columns, generator=generator) < 0.6


def test_unnormalize_inverts_normalisation_of_every_level() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    assert np.array_equal(unnormalize(normalize(levels), MEAN, STD), levels)
    coarse = unnormalize(normalize(levels).bfloat16(), torch.tensor(MEAN), torch.tensor(STD))
    # bfloat16 keeps 8 bits of a value of up to 2.7 deviations of 58 levels.
    assert np.abs(coarse.astype(int) - levels).max() <= 1


def test_unnormalize_clips_and_takes_what_is_not_a_number_for_black() -> None:
    x_NCHW = torch.tensor([-9.0, 9.0, float("nan"), float("inf")]).view(1, 1, 2, 2)
    picture = unnormalize(x_NCHW, [100.0], [50.0])
    assert picture[0, :, :, 0].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_unnormalize_shows_any_number_of_channels(channels: int) -> None:
    pictures = random_pictures(2, 32, 64, seed=0, channels=channels)
    mean, std = (list(np.resize(values, channels)) for values in (MEAN, STD))
    shown = unnormalize(normalize(pictures), mean, std)
    expected = np.zeros((2, 32, 64, 3), dtype=np.uint8)
    for channel in range(3):
        if channels == 1:
            expected[..., channel] = pictures[..., 0]
        elif channel < channels:
            expected[..., channel] = pictures[..., channel]
    assert np.array_equal(shown, expected)


@pytest.mark.parametrize(
    "num,grid,cell", [(1, (2, 2), 32), (3, (2, 5), 32), (2, (3, 1), 64)], ids=str
)
def test_panels_equal_pixels_chosen_one_by_one(num: int, grid: tuple[int, int], cell: int) -> None:
    height, width = grid[0] * cell, grid[1] * cell
    original = random_pictures(num, height, width, seed=1)
    predicted = random_pictures(num, height, width, seed=2)
    mask_Nhw = random_cells(num, *grid)
    assert mask_Nhw.any() and not mask_Nhw.all()
    panels = reconstruction_panels(normalize(original), normalize(predicted), mask_Nhw, MEAN, STD)
    assert panels.shape == (num, len(PANELS), height, width, 3) and panels.dtype == np.uint8
    for n in range(num):
        for y in range(height):
            for x in range(width):
                removed = bool(mask_Nhw[n, y // cell, x // cell])
                shown = original[n, y, x], predicted[n, y, x]
                expected = [
                    shown[0],
                    [REMOVED_GREY] * 3 if removed else shown[0],
                    shown[1],
                    shown[1] if removed else shown[0],
                ]
                assert np.array_equal(panels[n, :, y, x], expected), (n, y, x)


@pytest.mark.parametrize(
    "height,width,scale",
    [(64, 64, 3), (96, 96, 2), (160, 160, 1), (64, 128, 2), (512, 64, 2), (224, 320, 1)],
)
def test_grid_places_the_enlarged_panels(height: int, width: int, scale: int) -> None:
    original, predicted = (random_pictures(2, height, width, seed) for seed in (3, 4))
    x_NCHW, prediction_NCHW = normalize(original), normalize(predicted)
    mask_Nhw = random_cells(2, height // 32, width // 32)
    picture = np.asarray(reconstruction_grid(x_NCHW, prediction_NCHW, mask_Nhw, MEAN, STD))
    layout = GridLayout.for_images(2, height, width)
    assert layout.scale == scale
    panels = reconstruction_panels(x_NCHW, prediction_NCHW, mask_Nhw, MEAN, STD)
    background = np.ones(picture.shape[:2], dtype=bool)
    for row in range(2):
        for column in range(len(PANELS)):
            left, top = layout.corner(row, column)
            assert left == 12 + column * (width * scale + 6)
            assert top == 12 + layout.header + row * (height * scale + 6)
            area = (slice(top, top + height * scale), slice(left, left + width * scale))
            enlarged = panels[row, column].repeat(scale, axis=0).repeat(scale, axis=1)
            assert np.array_equal(picture[area], enlarged)
            assert background[area].all(), "two panels overlap"
            background[area] = False
    header = layout.margin + layout.header
    assert (picture[header:][background[header:]] == 255).all()
    assert picture.shape[:2] == (top + height * scale + 12, left + width * scale + 12)
    # The margin on all sides is white, and nothing is cut off.
    for edge in (picture[: layout.margin // 2], picture[-layout.margin :],
                 picture[:, : layout.margin], picture[:, -layout.margin :]):  # fmt: skip
        assert (edge == 255).all()


@pytest.mark.parametrize("height,width", [(32, 32), (64, 64), (512, 64), (512, 512)])
def test_grid_writes_one_label_over_every_column(height: int, width: int) -> None:
    x_NCHW = torch.zeros(1, 3, height, width)
    mask_Nhw = torch.ones(1, height // 32, width // 32, dtype=torch.bool)
    picture = np.asarray(reconstruction_grid(x_NCHW, x_NCHW, mask_Nhw, MEAN, STD))
    layout = GridLayout.for_images(1, height, width)
    ink = (picture[: layout.margin + layout.header] < 128).all(axis=-1).any(axis=0)
    for column in range(len(PANELS)):
        left, _ = layout.corner(0, column)
        inside = ink[left : left + width * layout.scale]
        assert inside.any()
        ink[left : left + width * layout.scale] = False
        # A label has air on both sides, so no two run into each other.
        assert not inside[0] and not inside[-1]
    assert not ink.any()


@pytest.mark.parametrize(
    "x,prediction,mask,message",
    [
        ((1, 3, 64, 64), (1, 3, 64, 96), (1, 2, 2), "one shape"),
        ((1, 3, 64, 64), (1, 3, 64, 64), (2, 2, 2), "images' N"),
        ((1, 3, 64, 64), (1, 3, 64, 64), (1, 2), "images' N"),
        ((1, 3, 64, 96), (1, 3, 64, 96), (1, 2, 2), r"square cells.*\(1, 2, 2\).*64x96"),
        ((1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 3), "square cells"),
        ((1, 4, 64, 64), (1, 4, 64, 64), (1, 2, 2), "4 channels"),
        ((3, 64, 64), (3, 64, 64), (1, 2, 2), r"\(N, C, H, W\)"),
        ((0, 3, 64, 64), (0, 3, 64, 64), (0, 2, 2), "at least one image"),
    ],
)
def test_grid_refuses_shapes_that_do_not_belong_together(
    x: tuple[int, ...], prediction: tuple[int, ...], mask: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reconstruction_grid(
            torch.zeros(x), torch.zeros(prediction), torch.zeros(mask, dtype=torch.bool), MEAN, STD
        )


def test_grid_refuses_a_mask_of_numbers() -> None:
    x_NCHW = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"boolean.*float32"):
        reconstruction_grid(x_NCHW, x_NCHW, torch.zeros(1, 2, 2), MEAN, STD)


def test_save_png_keeps_every_pixel(tmp_path) -> None:
    picture = Image.fromarray(random_pictures(1, 40, 50, seed=6)[0])
    path = save_png(picture, tmp_path / "new" / "folder" / "a.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), np.asarray(picture))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch) -> None:
    path = write_atomically(tmp_path / "a.bin", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_drawing_needs_torch_numpy_and_pillow_alone() -> None:
    code = (
        "import sys, mmconvnextv2.visualization as v\n"
        "names = {'mmengine', 'mmcv', 'mmpretrain', 'matplotlib', 'cv2', 'rich', 'torchvision'}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
