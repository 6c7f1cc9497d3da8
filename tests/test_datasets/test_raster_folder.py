"""`ImageFolder` over rasters: .npy and many channels, mixed folders, missing values."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmconvnextv2.datasets import BadImagesError, ImageFolder
from mmconvnextv2.datasets import image_folder as module

pytestmark = pytest.mark.unit


@pytest.fixture
def log(monkeypatch):
    """Collect what the dataset logs."""
    lines = []
    monkeypatch.setattr(module, "print_log", lambda message, *_: lines.append(message))
    return lines


def write(path, value=0, shape=(12, 8), dtype="uint16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(shape, value, dtype)
    pixels.flat[0] = 1  # no image is constant
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="minisblack")
    else:
        Image.fromarray(pixels).save(path)


def load(**arguments):
    return [dict(type="LoadRaster", **{"channels": 1, **arguments})]


def test_formats_and_sizes_mix_and_keep_their_depth(tmp_path):
    write(tmp_path / "a.npy", 1000)
    write(tmp_path / "deep" / "b.tif", 2000, shape=(30, 20))
    write(tmp_path / "c.png", 3000)
    dataset = ImageFolder(tmp_path, pipeline=load())
    assert [float(dataset[i]["img"][-1, -1, 0]) for i in range(3)] == [1000, 3000, 2000]
    assert [dataset[i]["img_shape"] for i in range(3)] == [(12, 8), (12, 8), (30, 20)]


def test_pages_are_channels(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.tif", 7, shape=(6, 12, 8))
    dataset = ImageFolder(tmp_path, pipeline=load(channels=6))
    assert dataset[1]["img"].shape == (12, 8, 6)


def test_without_the_raster_loader_npy_is_no_image(tmp_path):
    write(tmp_path / "a.npy")
    write(tmp_path / "b.png", dtype="uint8")
    assert len(ImageFolder(tmp_path, pipeline=[dict(type="LoadImage")])) == 1
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(ValueError, match=r"looked for .*\.npy"):
        ImageFolder(tmp_path / "texts", pipeline=load())


def test_mixed_channel_counts_are_named(tmp_path, log):
    for i in range(3):
        write(tmp_path / f"{i}.npy")
    write(tmp_path / "colour.npy", shape=(12, 8, 3))
    dataset = ImageFolder(tmp_path, pipeline=load())
    assert len(dataset) == 3
    assert any("colour.npy: 3 channels where 1 are expected" in line for line in log)
    write(tmp_path / "more.npy", shape=(12, 8, 3))
    with pytest.raises(BadImagesError, match=r"(?s)2 of 5 checked.*colour\.npy.*more\.npy"):
        ImageFolder(tmp_path, pipeline=load())


def test_mixed_depths_are_refused_unless_one_is_asked_for(tmp_path, log):
    for i in range(4):
        write(tmp_path / f"{i}.npy")
    write(tmp_path / "z.png", dtype="uint8")
    with pytest.raises(
        BadImagesError, match=r"4 uint16 \(such as .*0\.npy\), 1 uint8 \(such as .*z\.png\)"
    ):
        ImageFolder(tmp_path, pipeline=load())
    assert len(ImageFolder(tmp_path, pipeline=load(dtype="uint16"))) == 4
    assert any("z.png: numbers of type uint8 where uint16 is expected" in line for line in log)


def test_missing_values_replace_the_image_by_name_or_pass(tmp_path, log):
    for i in range(5):
        write(tmp_path / f"{i}.npy", i, dtype="float32")
    holed = np.ones((12, 8), np.float32)
    holed[3, 4] = np.nan
    np.save(tmp_path / "2.npy", holed)
    refused = ImageFolder(tmp_path, pipeline=load())
    assert refused[2]["img"][-1, -1, 0] == 3
    assert any("2.npy: 1 of 96 values are missing" in line for line in log)
    ignored = ImageFolder(tmp_path, pipeline=load(missing="ignore"))
    assert np.isnan(ignored[2]["img"]).sum() == 1
