"""FCMAEDataPreprocessor on images that are not 8-bit RGB: clipping, depth, missing values."""

from __future__ import annotations

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mmconvnextv2.models import FCMAEDataPreprocessor

pytestmark = pytest.mark.unit

NAN = float("nan")


def test_every_level_of_sixteen_bits_stays_apart():
    levels = torch.arange(65536, dtype=torch.float32).reshape(1, 256, 256)
    preprocessor = FCMAEDataPreprocessor([20_000.0], [15_000.0])
    out = preprocessor(dict(inputs=[levels]))["inputs"].flatten()
    assert (out.diff() > 0).all()
    expected = (levels.double().flatten() - 20_000) / 15_000
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 7])
def test_clipping_value_by_value(channels):
    generator = torch.Generator().manual_seed(0)
    image = 100 * torch.randn(channels, 32, 64, generator=generator)
    low = [-50.0 - 10 * c for c in range(channels)]
    high = [20.0 + 30 * c for c in range(channels)]
    mean, std = [5.0] * channels, [40.0 + c for c in range(channels)]
    preprocessor = FCMAEDataPreprocessor(mean, std, to_rgb=False, clip=(low, high))
    out = preprocessor.normalize(image[None])[0]
    for c in range(channels):
        for y, x in [(0, 0), (13, 40), (31, 63), (7, 8)]:
            value = min(max(image[c, y, x].item(), low[c]), high[c])
            assert out[c, y, x].item() == pytest.approx((value - mean[c]) / std[c], abs=1e-5)
    assert ((image < torch.tensor(low)[:, None, None]).flatten(1).any(1)).all()


def test_bounds_follow_the_channels_that_are_turned_round():
    image = torch.full((3, 32, 32), 500.0)
    preprocessor = FCMAEDataPreprocessor(
        [0.0] * 3, [1.0] * 3, clip=([0.0] * 3, [1.0, 2.0, 3.0]), to_rgb=True
    )
    assert preprocessor.normalize(image[None])[0, :, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_bounds_are_not_saved_and_absent_by_default():
    preprocessor = FCMAEDataPreprocessor([0.0], [1.0], clip=([0.0], [1.0]))
    assert not preprocessor.state_dict()
    assert FCMAEDataPreprocessor().low is None and FCMAEDataPreprocessor().high is None


def test_missing_values_are_refused_by_name():
    preprocessor = FCMAEDataPreprocessor([0.0], [1.0])
    images = [torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)]
    images[1][0, 3, 4] = NAN
    samples = [DataSample(metainfo=dict(img_path=f"{name}.tif")) for name in "ab"]
    with pytest.raises(ValueError, match=r"b\.tif has missing values.*missing='ignore'"):
        preprocessor(dict(inputs=images, data_samples=samples))
    with pytest.raises(ValueError, match="image 1 of the batch"):
        preprocessor(dict(inputs=torch.stack(images)))


def test_missing_values_pass_where_they_are_ignored():
    preprocessor = FCMAEDataPreprocessor([1.0], [2.0], missing="ignore", clip=([0.0], [9.0]))
    image = torch.full((1, 64, 64), 5.0)
    image[0, 3, 4] = NAN
    out = preprocessor(dict(inputs=[image]))["inputs"]
    assert out.isnan().nonzero().tolist() == [[0, 0, 3, 4]]
    assert (out[~out.isnan()] == 2.0).all()


def four_channels(tiny_arch: dict, head_missing: str) -> dict:
    """Config of an FCMAE whose preprocessor lets missing values pass."""
    return dict(
        type="FCMAE",
        data_preprocessor=dict(
            type="FCMAEDataPreprocessor", mean=[0.0] * 4, std=[1.0] * 4, missing="ignore"
        ),
        backbone=dict(
            type="ConvNeXtV2",
            arch=tiny_arch,
            in_channels=4,
            gap_before_final_norm=False,
            output_norms=False,
        ),
        neck=dict(
            type="FCMAEDecoder",
            in_channels=tiny_arch["channels"][-1],
            image_channels=4,
            num_channels=16,
        ),
        head=dict(type="FCMAEHead", missing=head_missing),
    )


def test_one_step_with_missing_values(tiny_arch):
    """Preprocessor and head together, as a config builds them: the loss is a number."""
    model = MODELS.build(four_channels(tiny_arch, "ignore"))
    images = [torch.randn(4, 96, 96) for _ in range(2)]
    images[0][:, 10:60] = NAN
    data = model.data_preprocessor(dict(inputs=images))
    loss = model(**data, mode="loss")["loss"]
    assert 0.5 < loss.item() < 2.0


def test_a_head_that_takes_no_missing_values_is_refused(tiny_arch):
    with pytest.raises(ValueError, match="missing='ignore' in FCMAEHead"):
        MODELS.build(four_channels(tiny_arch, "refuse"))


BAD = {
    "too few bounds": dict(clip=([0.0], [1.0])),
    "crossed bounds": dict(clip=([2.0, 0.0], [1.0, 1.0])),
    "unknown choice": dict(missing="drop"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    with pytest.raises(ValueError, match="clip|'drop'"):
        FCMAEDataPreprocessor([0.0, 0.0], [1.0, 1.0], **BAD[case])
