"""The pre-training pipeline of the configs, against torchvision's, which the official code uses."""

import math
from pathlib import Path

import mmpretrain.datasets  # noqa: F401  (registers the transforms of the 'mmpretrain' scope)
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor, resized_crop

from mmconvnextv2.datasets import ImageFolder, SeededIndex, StatelessDataset, UnreadableImageError
from mmconvnextv2.seeding import seed_everything

pytestmark = pytest.mark.unit

CONFIG = Path(__file__).parents[2] / "configs" / "_base_" / "fcmae.py"
CROP = {"type": "LoadRandomResizedCrop", "scale": 224, "crop_ratio_range": (0.2, 1.0)}
# What CROP stands for, together with LoadImage.
MMPRETRAIN_CROP = {
    "type": "RandomResizedCrop",
    "scale": 224,
    "crop_ratio_range": (0.2, 1.0),
    "backend": "pillow",
    "interpolation": "bicubic",
}


def build(*transforms):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return Compose(list(transforms))


def pipeline(color_type="color", flip=0.5):
    return build(
        {**CROP, "color_type": color_type},
        {"type": "RandomFlip", "prob": flip, "direction": "horizontal"},
        {"type": "PackInputs"},
    )


def write(path, width, height, mode="RGB", **options):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return str(path)


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (2, 2), (3, 700), (700, 3), (224, 224), (64, 48)]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize(("color_type", "channels"), [("color", 3), ("grayscale", 1)])
def test_every_shape_and_mode_comes_out_alike(tmp_path, width, height, mode, color_type, channels):
    path = write(tmp_path / "a.png", width, height, mode)
    seed_everything(0)
    out = pipeline(color_type)({"img_path": path, "sample_idx": 3})
    assert out["inputs"].shape == (channels, 224, 224)
    assert out["inputs"].dtype == torch.uint8
    assert out["data_samples"].img_path == path
    assert out["data_samples"].ori_shape == (height, width)


def test_pixels_equal_torchvision_for_the_same_crop(tmp_path):
    path = write(tmp_path / "a.png", 300, 200)
    image = Image.open(path)
    run = pipeline(flip=0.0)
    crop = build(MMPRETRAIN_CROP).transforms[0]
    for seed in range(20):
        seed_everything(seed)
        top, left, height, width = crop.rand_crop_params(np.array(image))
        seed_everything(seed)
        bgr = run({"img_path": path})["inputs"]
        size = [224, 224]
        expected = resized_crop(image, top, left, height, width, size, InterpolationMode.BICUBIC)
        assert torch.equal(bgr.flip(0), pil_to_tensor(expected))


@pytest.mark.parametrize(
    ("width", "height"), [(300, 200), (200, 300), (5, 4), (3, 700), (700, 3), (150, 80), (80, 150)]
)
@pytest.mark.parametrize("color_type", ["color", "grayscale"])
def test_crops_are_mmpretrain_s(tmp_path, width, height, color_type):
    """The same pixels mean the same boxes, the same generator the same draws after them."""
    path = write(tmp_path / "a.png", width, height)
    settings = {"scale": (40, 24), "aspect_ratio_range": (0.5, 1.5), "max_attempts": 3}
    ours = build({**CROP, **settings, "color_type": color_type})
    theirs = build({"type": "LoadImage", "color_type": color_type}, {**MMPRETRAIN_CROP, **settings})
    for seed in range(15):
        seed_everything(seed)
        expected, next_draw = theirs({"img_path": path}), np.random.random()
        seed_everything(seed)
        found = ours({"img_path": path, "sample_idx": 3})
        assert np.random.random() == next_draw
        np.testing.assert_array_equal(found["img"], expected["img"])
        assert found["img_shape"] == (40, 24)
        assert found["ori_shape"] == (height, width)
        assert found["sample_idx"] == 3


@pytest.mark.parametrize("orientation", [1, 6])
def test_crops_of_jpeg_are_mmpretrain_s(tmp_path, orientation):
    """A box drawn or cut elsewhere gives other noise; so does a crop of the image as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a.jpg", 240, 160, exif=exif, quality=95)
    ours, theirs = build(CROP), build({"type": "LoadImage"}, MMPRETRAIN_CROP)
    for seed in range(15):
        seed_everything(seed)
        expected = theirs({"img_path": path})["img"].astype(int)
        seed_everything(seed)
        assert np.abs(ours({"img_path": path})["img"] - expected).mean() < 0.5


def test_the_config_s_pipeline_is_the_one_tested_here(tmp_path):
    path = write(tmp_path / "a.png", 300, 200)
    config = build(*Config.fromfile(CONFIG).train_pipeline)
    for seed in range(5):
        seed_everything(seed)
        expected = pipeline()({"img_path": path})
        seed_everything(seed)
        found = config({"img_path": path})
        assert torch.equal(found["inputs"], expected["inputs"])
        assert found["data_samples"].flip == expected["data_samples"].flip


def test_mmpretrain_s_transforms_follow(tmp_path):
    path = write(tmp_path / "a.jpg", 300, 200)
    seed_everything(0)
    out = build(
        CROP,
        {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        {"type": "GaussianBlur", "radius": 1.0, "prob": 1.0},
        {"type": "RandomFlip", "prob": 1.0},
        {"type": "PackInputs"},
    )({"img_path": path})
    assert out["inputs"].shape == (3, 224, 224)
    assert out["data_samples"].flip is True


@pytest.mark.integration
def test_crops_depend_on_seed_epoch_and_index_alone(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.jpg", 900 + 10 * i, 700)
    crop = {**CROP, "scale": 64}
    dataset = StatelessDataset(ImageFolder(tmp_path, pipeline=[crop, lambda r: r["img"]]))
    order = [SeededIndex(i, epoch, seed=5) for epoch in (0, 1) for i in range(6)]
    here = torch.from_numpy(np.stack([dataset[i] for i in order]))
    backwards = torch.from_numpy(np.stack([dataset[i] for i in reversed(order)])).flip(0)
    loader = DataLoader(dataset, batch_size=3, sampler=order, num_workers=2)
    assert torch.equal(backwards, here)
    assert torch.equal(torch.cat(list(loader)), here)
    assert not torch.equal(here[:6], here[6:])


def test_an_unreadable_file_is_named(tmp_path):
    path = Path(write(tmp_path / "cut.jpg", 80, 60))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg.*truncated"):
        build(CROP)({"img_path": str(path)})
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg.*FileNotFoundError"):
        build(CROP)({"img_path": str(tmp_path / "gone.jpg")})


def test_settings_are_checked_and_shown():
    with pytest.raises(ValueError, match="got 'unchanged'"):
        build({**CROP, "color_type": "unchanged"})
    with pytest.raises(ValueError, match="range should be of kind"):
        build({**CROP, "crop_ratio_range": (1.0, 0.2)})
    assert repr(build(CROP).transforms[0]) == (
        "LoadRandomResizedCrop(scale=(224, 224), crop_ratio_range=(0.2, 1.0), "
        "aspect_ratio_range=(0.75, 1.3333333333333333), max_attempts=10, color_type='color')"
    )


def test_half_of_the_images_are_flipped(tmp_path):
    path = write(tmp_path / "a.png", 8, 8)
    flip = build(
        {"type": "LoadImage"}, {"type": "RandomFlip", "prob": 0.5, "direction": "horizontal"}
    )
    upright = np.array(Image.open(path))[..., ::-1]
    seed_everything(0)
    outs = [flip({"img_path": path})["img"] for _ in range(1000)]
    flipped = sum(np.array_equal(out, upright[:, ::-1]) for out in outs)
    assert flipped + sum(np.array_equal(out, upright) for out in outs) == 1000
    # Three standard deviations of 1,000 fair coins.
    assert abs(flipped - 500) < 48


def features(top, left, height, width, image_height, image_width):
    """Area share, log aspect ratio and relative position of a crop."""
    return (
        height * width / (image_height * image_width),
        math.log(width / height),
        (top + height / 2) / image_height,
        (left + width / 2) / image_width,
    )


def largest_gap(a, b):
    """Kolmogorov-Smirnov statistic: the largest distance of two empirical distributions."""
    grid = np.sort(np.concatenate([a, b]))
    cdf_a = np.searchsorted(np.sort(a), grid, side="right") / len(a)
    cdf_b = np.searchsorted(np.sort(b), grid, side="right") / len(b)
    return np.abs(cdf_a - cdf_b).max()


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 300), (200, 600)])
def test_crop_statistics_are_torchvision_s(width, height):
    draws, image = 4000, np.zeros((height, width, 3), np.uint8)
    tensor = torch.zeros(3, height, width)
    seed_everything(0)
    crop = build(CROP).transforms[0]
    ours = np.array([features(*crop.rand_crop_params(image), height, width) for _ in range(draws)])

    def theirs(scale):
        ratio = [3 / 4, 4 / 3]
        return np.array(
            [
                features(*RandomResizedCrop.get_params(tensor, list(scale), ratio), height, width)
                for _ in range(draws)
            ]
        )

    official, other = theirs((0.2, 1.0)), theirs((0.08, 1.0))
    # Two samples of one distribution stay below this with probability 0.999 a feature.
    limit = 1.95 * math.sqrt(2 / draws)
    for feature in range(4):
        assert largest_gap(ours[:, feature], official[:, feature]) < limit
    assert largest_gap(ours[:, 0], other[:, 0]) > 2 * limit
    np.testing.assert_allclose(ours.min(0)[:2], official.min(0)[:2], atol=0.02)
    np.testing.assert_allclose(ours.max(0)[:2], official.max(0)[:2], atol=0.02)
