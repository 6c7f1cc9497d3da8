"""Measured normalisation: against NumPy in float64 over all pixels at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from mmconvnextv2.datasets import BadImagesError
from mmconvnextv2.datasets import normalization as module
from mmconvnextv2.datasets.normalization import Normalization, measure_normalization

pytestmark = pytest.mark.unit


def write_folder(folder, channels=3, count=5, dtype="uint16", seed=0):
    """Images of different sizes, with an offset each, and one hot pixel; return all pixels."""
    generator = np.random.default_rng(seed)
    pixels_PC = []
    for i in range(count):
        shape = (20 + 3 * i, 30 - 2 * i, channels)
        image = generator.gamma(2.0, 900.0, shape) + 300 * i + np.arange(channels) * 50
        image[1, 2] = 65_000
        image = image.astype(dtype)
        if i % 2:
            np.save(folder / f"{i}.npy", image)
        else:
            tifffile.imwrite(
                folder / f"{i}.tif", image.transpose(2, 0, 1), photometric="minisblack"
            )
        pixels_PC.append(image.reshape(-1, channels))
    return np.concatenate(pixels_PC)


def brute_force(pixels_PC, percentiles):
    pixels_PC = pixels_PC.astype(np.float64)
    low, high = np.nanpercentile(pixels_PC, percentiles, axis=0)
    clipped = np.clip(pixels_PC, low, high)
    return np.nanmean(clipped, axis=0), np.nanstd(clipped, axis=0), low, high


def check(measured, pixels_PC, percentiles):
    mean, std, low, high = brute_force(pixels_PC, percentiles)
    np.testing.assert_allclose(measured.low, low, rtol=1e-15)
    np.testing.assert_allclose(measured.high, high, rtol=1e-15)
    np.testing.assert_allclose(measured.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(measured.std, std, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("percentiles", [(0.1, 99.9), (2.0, 95.0), (0.0, 100.0)])
def test_equals_brute_force_in_float64(tmp_path, channels, dtype, percentiles):
    pixels_PC = write_folder(tmp_path, channels, dtype=dtype)
    measured = measure_normalization(tmp_path, percentiles=percentiles)
    check(measured, pixels_PC, percentiles)
    assert (measured.num_images, measured.dtype) == (5, dtype)
    assert measured.missing_share == [0.0] * channels


def test_a_large_offset_costs_no_digits(tmp_path):
    """The textbook formula, mean of squares minus squared mean, would lose all of them."""
    generator = np.random.default_rng(0)
    for i in range(3):
        pixels = np.float32(8e6) + generator.integers(-3, 4, (40, 40)).astype(np.float32)
        np.save(tmp_path / f"{i}.npy", pixels)
    pixels_PC = np.concatenate([np.load(tmp_path / f"{i}.npy").reshape(-1, 1) for i in range(3)])
    check(measure_normalization(tmp_path), pixels_PC, (0.1, 99.9))


def test_missing_values_are_left_out(tmp_path):
    pixels_PC = write_folder(tmp_path, 2, dtype="float32")
    image = np.load(tmp_path / "1.npy")
    count = image[..., 0].size
    image[3:9, :, 1] = np.nan
    image[0, 0, 0] = -7.0
    np.save(tmp_path / "1.npy", image)
    start = 20 * 30
    pixels_PC[start : start + count] = np.where(image == -7, np.nan, image).reshape(-1, 2)
    measured = measure_normalization(tmp_path, missing="ignore", no_data=-7.0)
    check(measured, pixels_PC, (0.1, 99.9))
    assert measured.missing_share == pytest.approx(np.isnan(pixels_PC).mean(axis=0).tolist())
    with pytest.raises(ValueError, match="'drop'"):
        measure_normalization(tmp_path, missing="drop")


def test_one_file_with_missing_values_is_left_out_by_name_and_two_are_refused(
    tmp_path, monkeypatch
):
    lines = []
    monkeypatch.setattr(module, "print_log", lambda message, *_: lines.append(message))
    pixels_PC = write_folder(tmp_path, 1, dtype="float32")
    np.save(tmp_path / "z.npy", np.full((4, 4), np.nan, np.float32))
    check(measure_normalization(tmp_path), pixels_PC, (0.1, 99.9))
    assert len(lines) == 1 and "z.npy" in lines[0]
    np.save(tmp_path / "y.npy", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(BadImagesError, match=r"(?s)2 of 7.*y\.npy"):
        measure_normalization(tmp_path)


def test_one_hot_pixel_changes_next_to_nothing(tmp_path):
    generator = np.random.default_rng(0)
    image = generator.normal(100, 5, (100, 100)).astype(np.float32)
    np.save(tmp_path / "a.npy", image)
    clean = measure_normalization(tmp_path)
    image[50, 50] = 1e9
    np.save(tmp_path / "a.npy", image)
    robust = measure_normalization(tmp_path)
    plain = measure_normalization(tmp_path, percentiles=(0, 100))
    assert robust.mean == pytest.approx(clean.mean, rel=1e-3)
    assert robust.std == pytest.approx(clean.std, rel=1e-2)
    assert plain.std[0] > 1e6


def test_sampled_percentiles_are_close_and_the_same_twice_on_any_number_of_threads(tmp_path):
    pixels_PC = write_folder(tmp_path, 2, count=8)
    runs = [
        measure_normalization(tmp_path, percentiles=(5, 95), max_sampled=1500, num_threads=threads)
        for threads in (1, 4)
    ]
    assert runs[0] == runs[1]
    _, _, low, high = brute_force(pixels_PC, (5, 95))
    np.testing.assert_allclose(runs[0].low, low, rtol=0.2)
    np.testing.assert_allclose(runs[0].high, high, rtol=0.1)
    # Mean and deviation are those of every pixel, whatever the bounds.
    clipped = pixels_PC.astype(np.float64).clip(runs[0].low, runs[0].high)
    np.testing.assert_allclose(runs[0].mean, clipped.mean(axis=0), rtol=1e-13)


def test_saved_and_read_again(tmp_path):
    write_folder(tmp_path, 2)
    measured = measure_normalization(tmp_path)
    path = measured.save(tmp_path / "out" / "n.json")
    assert Normalization.load(path) == measured
    document = json.loads(path.read_text())
    assert {"mean", "std", "low", "high", "num_images", "dtype"} <= set(document)
    path.write_text('{"mean": [1.0]}')
    with pytest.raises(ValueError, match=r"n\.json is no normalisation file"):
        Normalization.load(path)


def test_a_constant_channel_is_refused_or_kept(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(3):
        image = generator.integers(0, 999, (20, 20, 3)).astype(np.uint16)
        image[..., 1] = 7
        np.save(tmp_path / f"{i}.npy", image)
    with pytest.raises(ValueError, match=r"channel 1 \(value 7\), counted from 0.*'keep'"):
        measure_normalization(tmp_path)
    kept = measure_normalization(tmp_path, constant="keep")
    assert (kept.mean[1], kept.std[1], kept.low[1], kept.high[1]) == (7.0, 1.0, 7.0, 7.0)
    assert kept.std[0] > 100


def test_mixed_folders_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((9, 9), np.uint8))
    np.save(tmp_path / "b.npy", np.ones((9, 9), np.uint16))
    with pytest.raises(ValueError, match=r"number types: .*uint8.*a\.npy.*uint16.*b\.npy"):
        measure_normalization(tmp_path)
    np.save(tmp_path / "b.npy", np.ones((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"numbers of channels: 1 x 1 .*a\.npy.*1 x 3 .*b\.npy"):
        measure_normalization(tmp_path)


def test_bad_arguments_and_nothing_to_measure(tmp_path):
    with pytest.raises(ValueError, match="rise within 0 to 100"):
        measure_normalization(tmp_path, percentiles=(99, 1))
    with pytest.raises(ValueError, match="'drop'"):
        measure_normalization(tmp_path, constant="drop")
    with pytest.raises(ValueError, match="the list is empty"):
        measure_normalization([])
    with pytest.raises(FileNotFoundError, match="no image folder"):
        measure_normalization(tmp_path / "none")
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(BadImagesError, match=r"(?s)1 of 1.*a\.png"):
        measure_normalization(tmp_path)
    np.save(tmp_path / "b.npy", np.stack([np.full((4, 4), np.nan), np.ones((4, 4))], -1))
    with pytest.raises(ValueError, match="channel 0 .* no known value"):
        measure_normalization([str(tmp_path / "b.npy")], missing="ignore")
