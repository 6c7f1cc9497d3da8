"""FCMAEDataPreprocessor: normalisation against a loop over pixels, and the owner of the mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mmconvnextv2.models import FCMAEDataPreprocessor

pytestmark = pytest.mark.unit

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def images(count: int = 2, channels: int = 3, size: tuple[int, int] = (64, 96)) -> list:
    """Images as the pipelines deliver them: uint8 (C, H, W), BGR where they have colour."""
    generator = torch.Generator().manual_seed(0)
    shape = (channels, *size)
    return [
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(count)
    ]


@pytest.mark.parametrize("to_rgb", [True, False])
def test_normalisation_pixel_by_pixel(to_rgb):
    preprocessor = FCMAEDataPreprocessor(mean=MEAN, std=STD, to_rgb=to_rgb)
    batch = images(2, size=(64, 96))
    out = preprocessor(dict(inputs=batch))["inputs"]
    assert out.dtype == torch.float32 and out.shape == (2, 3, 64, 96)
    for n, image in enumerate(batch):
        pixels = image.numpy().astype(np.float64)
        for c in range(3):
            source = 2 - c if to_rgb else c
            for y, x in [(0, 0), (5, 17), (63, 95)]:
                wanted = (pixels[source, y, x] - MEAN[c]) / STD[c]
                assert out[n, c, y, x].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_other_numbers_of_channels_keep_their_order(channels):
    mean, std = list(range(1, channels + 1)), list(range(11, channels + 11))
    preprocessor = FCMAEDataPreprocessor(mean=mean, std=std)
    batch = images(2, channels, (64, 64))
    out = preprocessor(dict(inputs=batch))["inputs"]
    for c in range(channels):
        wanted = (torch.stack(batch)[:, c].double() - mean[c]) / std[c]
        torch.testing.assert_close(out[:, c].double(), wanted, rtol=0, atol=1e-4)


def test_a_list_and_a_tensor_are_the_same_batch():
    preprocessor = FCMAEDataPreprocessor(mean=MEAN, std=STD)
    batch = images()
    before = [image.clone() for image in batch]
    from_list = preprocessor(dict(inputs=batch))["inputs"]
    assert torch.equal(from_list, preprocessor(dict(inputs=torch.stack(batch)))["inputs"])
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


def test_it_returns_what_forward_takes():
    samples = [DataSample(metainfo=dict(img_path=name)) for name in "ab"]
    preprocessor = FCMAEDataPreprocessor(mean=MEAN, std=STD)
    data = preprocessor(dict(inputs=images(), data_samples=samples), training=True)
    assert set(data) == {"inputs", "data_samples", "mask"}
    assert [sample.img_path for sample in data["data_samples"]] == ["a", "b"]
    assert preprocessor(dict(inputs=images()))["data_samples"] is None


@pytest.mark.parametrize(
    ("size", "ratio", "cell", "visible"),
    [
        ((224, 224), 0.6, 32, 19),
        ((64, 96), 0.5, 32, 3),
        ((128, 192), 0.6, 64, 8),
        ((192, 192), 0.25, 96, 27),
    ],
)
def test_the_mask_follows_ratio_and_cell_size(size, ratio, cell, visible):
    preprocessor = FCMAEDataPreprocessor(mean=MEAN, std=STD, mask_ratio=ratio, cell_size=cell)
    mask_NHW = preprocessor(dict(inputs=images(3, size=size)))["mask"]
    assert mask_NHW.dtype == torch.bool
    assert mask_NHW.shape == (3, size[0] // 32, size[1] // 32)
    assert (~mask_NHW).flatten(1).sum(1).tolist() == [visible] * 3


def test_the_default_ratio_is_that_of_the_paper():
    mask_NHW = FCMAEDataPreprocessor()(dict(inputs=images(size=(224, 224))))["mask"]
    assert (~mask_NHW).flatten(1).sum(1).tolist() == [19, 19]


def test_one_seed_gives_one_mask_whatever_the_images_hold():
    preprocessor = FCMAEDataPreprocessor(mean=MEAN, std=STD)
    masks = []
    for seed, batch in [(1, images()), (1, [255 - i for i in images()]), (2, images())]:
        torch.manual_seed(seed)
        masks.append(preprocessor(dict(inputs=batch))["mask"])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_training_and_evaluation_draw_alike():
    preprocessor = FCMAEDataPreprocessor(mean=MEAN, std=STD)
    masks = []
    for training in (True, False):
        torch.manual_seed(4)
        masks.append(preprocessor(dict(inputs=images()), training=training)["mask"])
    assert torch.equal(*masks)


@pytest.mark.gpu
def test_one_seed_gives_one_mask_on_every_device():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    results = []
    for device in ("cpu", "cuda"):
        preprocessor = FCMAEDataPreprocessor(mean=MEAN, std=STD).to(device)
        torch.manual_seed(1)
        torch.cuda.manual_seed(99)
        results.append(preprocessor(dict(inputs=images())))
    assert results[1]["mask"].is_cuda and results[1]["inputs"].is_cuda
    assert torch.equal(results[0]["mask"], results[1]["mask"].cpu())
    torch.testing.assert_close(results[0]["inputs"], results[1]["inputs"].cpu())


def test_it_has_nothing_to_save():
    """Mean, deviation and ratio come from the config, so checkpoints hold the network alone."""
    assert not FCMAEDataPreprocessor(mean=MEAN, std=STD).state_dict()


BAD_ARGUMENTS = {
    "ratio of zero": (dict(mask_ratio=0.0), "0"),
    "ratio of one": (dict(mask_ratio=1.0), "1"),
    "ratio above one": (dict(mask_ratio=60), "60"),
    "cell below 32": (dict(cell_size=16), "16"),
    "cell not a multiple of 32": (dict(cell_size=48), "48"),
    "deviation of zero": (dict(std=[1.0, 0.0, 1.0]), "std"),
    "unequal lengths": (dict(mean=[1.0]), "mean"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named_at_build(case):
    arguments, message = BAD_ARGUMENTS[case]
    config = dict(type="mmpretrain.FCMAEDataPreprocessor", mean=MEAN, std=STD) | arguments
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)


BAD_BATCHES = {
    "channels": (dict(), images(1, 1), "1"),
    "height": (dict(), images(1, size=(70, 64)), "70"),
    "width": (dict(), images(1, size=(64, 33)), "33"),
    "shapes": (dict(), images(1) + images(1, size=(64, 64)), "(?=.*96)(?=.*64)"),
    "nothing visible": (dict(mask_ratio=0.9), images(1, size=(64, 64)), r"0\.9"),
    "nothing removed": (dict(mask_ratio=1e-17), images(1, size=(64, 64)), "1e-17"),
    "cell larger than the image": (dict(cell_size=128), images(1, size=(64, 64)), "2x2.*4"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches_are_named(case):
    arguments, batch, message = BAD_BATCHES[case]
    preprocessor = FCMAEDataPreprocessor(mean=MEAN, std=STD, **arguments)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        preprocessor(dict(inputs=batch))
