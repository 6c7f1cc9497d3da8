"""The pre-training pipeline of the configs, against torchvision's, which the official code uses."""

import math

import mmpretrain.datasets  # noqa: F401  (registers the transforms of the 'mmpretrain' scope)
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor, resized_crop

import mmconvnextv2.datasets  # noqa: F401
from mmconvnextv2.seeding import seed_everything

pytestmark = pytest.mark.unit

CROP = {
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
        {"type": "LoadImage", "color_type": color_type},
        CROP,
        {"type": "RandomFlip", "prob": flip, "direction": "horizontal"},
        {"type": "PackInputs"},
    )


def write(path, width, height, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
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
    crop = build(CROP).transforms[0]
    for seed in range(20):
        seed_everything(seed)
        top, left, height, width = crop.rand_crop_params(np.array(image))
        seed_everything(seed)
        bgr = run({"img_path": path})["inputs"]
        size = [224, 224]
        expected = resized_crop(image, top, left, height, width, size, InterpolationMode.BICUBIC)
        assert torch.equal(bgr.flip(0), pil_to_tensor(expected))


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
