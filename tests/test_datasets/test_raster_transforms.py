"""Transforms for rasters: crops against Pillow in float, pipelines of all four packages."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile
import torch
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, DefaultScope
from mmpretrain.datasets.transforms import RandomResizedCrop
from PIL import Image

from mmconvnextv2.datasets import UnreadableImageError
from mmconvnextv2.datasets.raster_transforms import (
    LoadRaster,
    NormalizeChannels,
    RasterCenterCrop,
    RasterRandomResizedCrop,
    crop_and_resize,
)
from mmconvnextv2.models import FCMAEDataPreprocessor

pytestmark = pytest.mark.unit


def random_raster(height=50, width=70, channels=5, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(1000, 300, (height, width, channels)).astype(np.float32)


def with_pillow(channel, box, size):
    """Crop, then Pillow's bicubic filter for floating-point pixels."""
    picture = Image.fromarray(channel).crop(box)
    return np.array(picture.resize(size, Image.Resampling.BICUBIC))


def write(path, pixels_HWC):
    np.save(path, pixels_HWC)
    return {"img_path": str(path)}


def test_load_raster_gives_float32_in_the_files_units(tmp_path):
    pixels = np.arange(65536, dtype=np.uint16).reshape(64, 1024, 1)
    results = TRANSFORMS.build(dict(type="LoadRaster", channels=1))(
        write(tmp_path / "a.npy", pixels)
    )
    assert results["img"].dtype == np.float32 and results["img"].shape == (64, 1024, 1)
    assert results["img_shape"] == results["ori_shape"] == (64, 1024)
    assert np.array_equal(results["img"], pixels)


def test_load_raster_refuses_another_kind_by_name(tmp_path):
    info = write(tmp_path / "a.npy", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UnreadableImageError, match=r"a\.npy: 3 channels where 1 are expected"):
        LoadRaster(1)(dict(info))
    with pytest.raises(UnreadableImageError, match=r"a\.npy: .*uint8 where uint16 is expected"):
        LoadRaster(3, dtype="uint16")(dict(info))
    assert LoadRaster(3, dtype="uint8")(dict(info))["img"].shape == (8, 8, 3)


def test_load_raster_refuses_missing_values_or_marks_them(tmp_path):
    pixels = random_raster()
    pixels[1, 2, 3] = np.nan
    pixels[4, 5, 0] = -1.0
    info = write(tmp_path / "a.npy", pixels)
    with pytest.raises(UnreadableImageError, match=r"a\.npy: 1 of"):
        LoadRaster(5)(dict(info))
    img = LoadRaster(5, missing="ignore", no_data=-1.0)(dict(info))["img"]
    assert np.argwhere(np.isnan(img)).tolist() == [[1, 2, 3], [4, 5, 0]]


@pytest.mark.parametrize("arguments", [dict(channels=0), dict(channels=17)], ids=str)
def test_load_raster_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match=str(arguments["channels"])):
        LoadRaster(**arguments)
    with pytest.raises(ValueError, match="'drop'"):
        LoadRaster(1, missing="drop")
    with pytest.raises(TypeError, match="uint17"):
        LoadRaster(1, dtype="uint17")


@pytest.mark.parametrize("channels", [1, 2, 5, 16])
@pytest.mark.parametrize(
    ("box", "size"),
    [((3, 5, 60, 45), (32, 32)), ((0, 0, 70, 50), (96, 64)), ((10, 10, 42, 42), (32, 32))],
)
def test_crop_and_resize_as_pillow_does_channel_by_channel(channels, box, size):
    pixels = random_raster(channels=channels)
    out = crop_and_resize(pixels, box, size)
    assert out.shape == (size[1], size[0], channels) and out.dtype == np.float32
    for c in range(channels):
        expected = with_pillow(pixels[..., c], box, size)
        np.testing.assert_allclose(out[..., c], expected, rtol=0, atol=1e-2)
    grey = crop_and_resize(pixels[..., 0], box, size)
    assert np.array_equal(grey, out[..., 0])


def test_a_step_of_one_level_in_65536_is_visible_after_crop_and_normalisation(tmp_path):
    pixels = np.full((64, 64, 1), 40_000, np.uint16)
    pixels[:, 32:] += 1
    pipeline = Compose(
        [
            LoadRaster(1),
            RasterRandomResizedCrop(32, crop_ratio_range=(1.0, 1.0)),
            NormalizeChannels([30_000.0], [20_000.0]),
        ]
    )
    img = pipeline(write(tmp_path / "a.npy", pixels))["img"][..., 0]
    step = img[:, -8:].mean() - img[:, :8].mean()
    assert step == pytest.approx(1 / 20_000, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_random_crops_are_those_of_mmpretrain(seed):
    """Both cut the same box; what differs is the filter."""
    height, width = 40, 90
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.stack([rows, columns], axis=-1).astype(np.float32)
    np.random.seed(seed)
    ours = RasterRandomResizedCrop((32, 48))({"img": places})
    np.random.seed(seed)
    theirs = RandomResizedCrop((32, 48), interpolation="bilinear")({"img": places})
    assert ours["img_shape"] == (32, 48)
    np.testing.assert_allclose(ours["img"], theirs["img"], atol=1.5)
    np.testing.assert_allclose(ours["img"].mean((0, 1)), theirs["img"].mean((0, 1)), atol=0.3)


@pytest.mark.parametrize(
    ("shape", "scale", "box"),
    [
        ((50, 70), 32, (10, 0, 60, 50)),
        ((70, 50), 32, (0, 10, 50, 60)),
        ((64, 64), (32, 64), (0, 16, 64, 48)),
        ((20, 20), 32, (0, 0, 20, 20)),
    ],
)
def test_center_crop(shape, scale, box):
    pixels = random_raster(*shape, channels=2)
    out = RasterCenterCrop(scale)({"img": pixels})
    height, width = (scale, scale) if isinstance(scale, int) else scale
    assert out["img_shape"] == (height, width)
    for c in range(2):
        expected = with_pillow(pixels[..., c], box, (width, height))
        np.testing.assert_allclose(out["img"][..., c], expected, rtol=0, atol=1e-2)


def test_a_missing_value_spreads_and_reaches_no_further_than_the_filter():
    pixels = random_raster(64, 64, 2)
    clean = crop_and_resize(pixels, (0, 0, 64, 64), (32, 32))
    pixels[20, 20, 1] = np.nan
    out = crop_and_resize(pixels, (0, 0, 64, 64), (32, 32))
    missing = np.isnan(out)
    rows, columns = np.nonzero(missing[..., 1])
    assert missing[10, 10, 1] and not missing[..., 0].any()
    # Bicubic reaches 2 output pixels where it shrinks.
    assert rows.min() >= 7 and rows.max() <= 13 and columns.min() >= 7 and columns.max() <= 13
    assert np.array_equal(out[~missing], clean[~missing])


def test_normalize_channels_against_a_loop_and_the_preprocessor():
    pixels = random_raster(channels=4)
    mean, std = [900.0, 1000.0, 1100.0, 0.5], [10.0, 300.0, 250.0, 1.0]
    low, high = [500.0, 0.0, 800.0, -1.0], [1500.0, 1100.0, 1200.0, 2000.0]
    out = NormalizeChannels(mean, std, low, high)({"img": pixels.copy()})["img"]
    for y, x, c in [(0, 0, 0), (13, 17, 1), (49, 69, 2), (20, 5, 3)]:
        value = min(max(float(pixels[y, x, c]), low[c]), high[c])
        assert out[y, x, c] == pytest.approx((value - mean[c]) / std[c], rel=1e-5, abs=1e-5)
    clipped = (pixels < low) | (pixels > high)
    assert clipped.any(axis=(0, 1)).all()
    preprocessor = FCMAEDataPreprocessor(mean, std, clip=(low, high))
    x_1CHW = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    assert np.array_equal(preprocessor.normalize(x_1CHW)[0].permute(1, 2, 0).numpy(), out)


def test_normalize_channels_fills_missing_values_with_the_mean_or_refuses_them():
    pixels = random_raster(channels=1)
    pixels[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"x\.tif has 1 missing"):
        NormalizeChannels([1000.0], [300.0])({"img": pixels.copy(), "img_path": "x.tif"})
    normalize = NormalizeChannels([1000.0], [300.0], missing="ignore")
    out = normalize({"img": pixels[..., 0].copy()})["img"]
    assert out.shape == (50, 70, 1) and out[3, 4, 0] == 0.0 and np.isfinite(out).all()


BAD = {
    "lengths": (dict(mean=[1.0], std=[1.0, 2.0]), "std"),
    "zero deviation": (dict(mean=[1.0], std=[0.0]), "positive"),
    "bound": (dict(mean=[1.0, 2.0], std=[1.0, 2.0], low=[0.0]), "low must have 2"),
    "order": (dict(mean=[1.0], std=[1.0], low=[2.0], high=[1.0]), "above"),
    "missing": (dict(mean=[1.0], std=[1.0], missing="x"), "'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_normalize_channels_refuses_bad_arguments(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        NormalizeChannels(**arguments)


def test_normalize_channels_refuses_other_images():
    with pytest.raises(ValueError, match="5 channels.*2 means"):
        NormalizeChannels([1.0, 2.0], [1.0, 2.0])({"img": random_raster()})


def statistics(channels):
    return dict(mean=[1000.0] * channels, std=[300.0] * channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 16])
def test_pipelines_of_mmpretrain_mmseg_and_mmdet(tmp_path, channels):
    """The first channel is compared with what one channel alone goes through."""
    import mmdet.datasets  # noqa: F401
    import mmseg.datasets  # noqa: F401

    pixels = random_raster(60, 80, channels, seed=channels)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        photometric="minisblack",
    )
    Image.fromarray(np.arange(4800, dtype=np.uint8).reshape(60, 80)).save(tmp_path / "a.png")
    load = dict(type="LoadRaster", channels=channels)
    normalize = dict(type="NormalizeChannels", **statistics(channels))
    flip = dict(type="RandomFlip", prob=1.0)
    resize = dict(type="Resize", scale=(64, 48), keep_ratio=True)
    seg_info = dict(
        img_path=str(tmp_path / "a.tif"),
        seg_map_path=str(tmp_path / "a.png"),
        seg_fields=[],
        reduce_zero_label=False,
    )
    pipelines = {
        "mmpretrain": [load, dict(type="ResizeEdge", scale=48), flip, normalize],
        "mmseg": [
            load,
            dict(type="LoadAnnotations"),
            dict(type="RandomResize", scale=(64, 48), ratio_range=(1.0, 1.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(48, 64)),
            flip,
            normalize,
        ],
        "mmdet": [load, resize, flip, normalize],
    }
    pack = {"mmpretrain": "PackInputs", "mmseg": "PackSegInputs", "mmdet": "PackDetInputs"}
    for scope, steps in pipelines.items():
        with DefaultScope.overwrite_default_scope(scope):
            steps = [TRANSFORMS.build(dict(step)) for step in [*steps, dict(type=pack[scope])]]
        packed = Compose(steps)(dict(seg_info))
        inputs_CHW = packed["inputs"]
        assert inputs_CHW.shape == (channels, 48, 64), scope
        assert inputs_CHW.dtype == torch.float32
        for c in range(channels):
            small = cv2.resize(pixels[..., c], (64, 48), interpolation=cv2.INTER_LINEAR)[:, ::-1]
            torch.testing.assert_close(
                inputs_CHW[c].numpy(), (small - 1000) / 300, rtol=0, atol=1e-3
            )


@pytest.mark.parametrize("channels", [1, 5])
def test_preprocessors_of_all_three_leave_normalised_channels_alone(channels):
    from mmdet.models.data_preprocessors import DetDataPreprocessor
    from mmpretrain.models.utils import ClsDataPreprocessor
    from mmseg.models.data_preprocessor import SegDataPreProcessor

    x_CHW = torch.randn(channels, 64, 64)
    from mmdet.structures import DetDataSample
    from mmseg.structures import SegDataSample

    for preprocessor, sample in [
        (ClsDataPreprocessor(mean=None, std=None, to_rgb=False), None),
        (DetDataPreprocessor(), DetDataSample()),
        (SegDataPreProcessor(), SegDataSample()),
    ]:
        data = dict(inputs=[x_CHW])
        if sample is not None:
            sample.set_metainfo(dict(img_shape=(64, 64)))
            data["data_samples"] = [sample]
        assert torch.equal(preprocessor(data)["inputs"][0], x_CHW), type(preprocessor)
