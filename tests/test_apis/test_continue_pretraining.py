"""Continued pre-training in one call: what it recognises and fills in, and that it helps."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmconvnextv2.apis.continue_config import (
    choose_settings,
    continue_config,
    look_at_images,
    read_as_rasters,
    start_from,
)
from mmconvnextv2.apis.continue_pretraining import continue_pretraining
from mmconvnextv2.apis.run_folder import WorkDirError
from mmconvnextv2.checkpoint import Conversion, convert_state_dict
from mmconvnextv2.datasets import LoadRaster, SplitImageFolder
from mmconvnextv2.datasets.image_folder import BadImagesError
from mmconvnextv2.datasets.image_scan import TooFewImagesError
from mmconvnextv2.datasets.normalization import Normalization
from mmconvnextv2.nn import FCMAE, ConvNeXtV2

pytestmark = pytest.mark.integration

NUM_IMAGES = 24


def write(path: Path, pixels: np.ndarray) -> None:
    """Save at full depth, in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    else:
        assert cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16-bit images of one channel that grow brighter downwards: every patch looks alike."""
    folder = tmp_path_factory.mktemp("scans")
    random = np.random.default_rng(0)
    rows = np.linspace(-1, 1, 80)[:, None]
    for i in range(NUM_IMAGES):
        pixels = 20_000 + random.uniform(4_000, 9_000) * rows + random.normal(0, 50, (80, 80))
        write(folder / f"{i:02}.png", pixels.astype(np.uint16))
    return folder


@pytest.fixture
def encoder(tiny_arch: dict, tmp_path: Path) -> Path:
    """A 3-channel encoder as it is published, without a decoder."""
    net = ConvNeXtV2(tiny_arch, output_norms=False)
    torch.save({"model": net.state_dict()}, tmp_path / "encoder.pt")
    return tmp_path / "encoder.pt"


# What kind of images a folder holds.


@pytest.mark.parametrize(
    ("files", "in_channels", "expected"),
    [
        ({"a.png": ("uint8", (8, 8, 3)), "b/c.jpg": ("uint8", (8, 8))}, None, (3, False)),
        ({"a.png": ("uint8", (8, 8))}, None, (3, False)),
        ({"a.png": ("uint8", (8, 8))}, 1, (1, True)),
        ({"a.png": ("uint8", (8, 8, 4))}, None, (3, False)),
        ({"a.tif": ("uint8", (8, 8, 4))}, None, (4, True)),
        ({"a.png": ("uint16", (8, 8))}, None, (1, True)),
        ({"a.png": ("uint8", (8, 8)), "b.png": ("uint16", (8, 8))}, None, (1, True)),
        ({"a.npy": ("float32", (8, 8, 5))}, None, (5, True)),
        ({"a.npy": ("uint8", (8, 8, 3))}, None, (3, True)),
    ],
)
def test_how_a_folder_is_read(
    files: dict[str, tuple[str, tuple[int, ...]]],
    in_channels: int | None,
    expected: tuple[int, bool],
    tmp_path: Path,
) -> None:
    for name, (dtype, shape) in files.items():
        write(tmp_path / name, np.ones(shape, dtype))
    images = look_at_images(tmp_path, in_channels)
    assert (images.channels, images.raster) == expected
    assert len(images.paths) == len(files)


def test_pages_of_a_tiff_are_channels_and_no_colours(tmp_path: Path) -> None:
    """Three pages of 8 bit have three channels, as RGB does, and Pillow would read the first."""
    pages = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    images = look_at_images(tmp_path)
    assert (images.channels, images.raster) == (3, True)


def test_missing_values_of_8_bit_pictures_are_treated(tmp_path: Path, encoder: Path) -> None:
    """Black borders of 8-bit tiles: the run reads them as missing instead of as pixels."""
    random = np.random.default_rng(0)
    for i in range(16):
        pixels = random.integers(1, 256, (64, 64, 3)).astype(np.uint8)
        pixels[:, :20] = 0
        write(tmp_path / "tiles" / f"{i}.png", pixels)
    given = dict(image_size=64, epochs=1, batch_size=4, held_out_share=0.3, num_workers=0)
    work_dir = tmp_path / "run"
    continue_pretraining(
        tmp_path / "tiles", encoder, work_dir, missing="ignore", no_data=0.0, **given
    )
    measured = Normalization.load(work_dir / "normalization.json")
    assert measured.missing_share == pytest.approx([20 / 64] * 3)
    assert all(100 < mean < 156 for mean in measured.mean)


def test_mixed_numbers_of_channels_are_refused(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.npy", np.ones((8, 8, 2), np.float32))
    write(tmp_path / "odd.npy", np.ones((8, 8, 5), np.float32))
    with pytest.raises(BadImagesError, match=r"channels \(3 of 2, 1 of 5\): keep them"):
        look_at_images(tmp_path)


# What the config becomes.


def make_config(data: Path, source: Conversion, **given: Any) -> Config:
    names = ("group_by", "image_size", "early_stop", "num_workers", "amp")
    others = {name: given.pop(name) for name in names if name in given}
    settings, num_train = choose_settings(data, look_at_images(data), **given)
    return continue_config(data, source, settings, num_train, **others)


def test_whole_folders_are_held_out(tmp_path: Path) -> None:
    """The count, the normalisation's files and the two data sets agree on the parts."""
    for place, i in itertools.product("abcdefgh", range(3)):
        write(tmp_path / place / f"{i}.png", np.ones((8, 8), np.uint16))
    images = look_at_images(tmp_path)
    given = dict(held_out_share=0.5, group_by="folder")
    _, num_train = choose_settings(tmp_path, images, **given)
    paths = images.training_paths(tmp_path, **given)
    assert num_train == len(paths) and 0 < num_train < 24
    by_place = Counter(Path(path).parent.name for path in paths)
    assert set(by_place.values()) == {3}
    split = SplitImageFolder(tmp_path, part="train", pipeline=[LoadRaster(1)], **given)
    assert sorted(paths) == sorted(split.get_data_info(i)["img_path"] for i in range(len(split)))


@pytest.fixture
def nano() -> Conversion:
    with torch.device("meta"):
        return convert_state_dict(ConvNeXtV2("nano").state_dict())


def test_config_follows_the_arguments(scans: Path, nano: Conversion) -> None:
    cfg = make_config(
        scans,
        nano,
        epochs=60,
        batch_size=8,
        accumulate=2,
        base_lr=1e-3,
        encoder_rate=0.5,
        mask_ratio=0.7,
        held_out_share=0.25,
        group_by="folder",
        image_size=96,
        early_stop=4,
        amp=True,
    )
    assert cfg.model.backbone.arch == "nano"
    assert cfg.model.neck.in_channels == 640
    assert cfg.model.data_preprocessor.mask_ratio == 0.7
    assert cfg.optim_wrapper.type == "AutocastOptimWrapper"
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3 * 16 / 256)
    assert cfg.optim_wrapper.paramwise_cfg.encoder_rate == 0.5
    for loader, part in ((cfg.train_dataloader, "train"), (cfg.val_dataloader, "held_out")):
        images = loader.dataset.dataset
        assert (images.type, images.part, images.group_by) == ("SplitImageFolder", part, "folder")
        assert (images.data_root, images.held_out_share) == (str(scans), 0.25)
        assert images.pipeline[0].scale == 96
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (60, 3)
    stop = cfg.custom_hooks[-1]
    assert (stop["type"], stop["monitor"], stop["patience"]) == (
        "ResumableEarlyStoppingHook",
        "held_out_loss",
        4,
    )
    # An eighth of the steps, in iterations, twice.
    num_train = len(look_at_images(scans).training_paths(scans, 0.25, "file"))
    assert num_train < NUM_IMAGES
    warmup = 60 * (num_train // 8) // 2 // 8 * 2
    assert [s.get("end") for s in cfg.param_scheduler] == [warmup, 2 * warmup, None]
    assert make_config(scans, nano, epochs=1).param_scheduler[0].type == "CosineAnnealingLR"


def test_few_images_fill_one_batch(scans: Path, nano: Conversion) -> None:
    cfg = make_config(scans, nano)
    num_train = len(look_at_images(scans).training_paths(scans, 0.2, "file"))
    assert cfg.train_dataloader.batch_size == num_train < 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(epochs=0), "epochs must be at least 1, got 0"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(mask_ratio=1.0), "mask_ratio must lie strictly between 0 and 1, got 1.0"),
        (dict(held_out_share=0.0), "held_out_share must lie strictly between"),
        (dict(image_size=100), "multiple of 32"),
        (dict(early_stop=0), "early_stop must be at least 1"),
    ],
)
def test_bad_arguments(changes: dict, message: str, scans: Path, nano: Conversion) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(scans, nano, **changes)


@pytest.mark.parametrize(("share", "parts"), [(0.999999, "0 to train on and 24"), (1e-9, "24 to")])
def test_both_parts_need_images(share: float, parts: str, scans: Path) -> None:
    with pytest.raises(TooFewImagesError, match=f"of the 24 images.*{parts}"):
        choose_settings(scans, look_at_images(scans), held_out_share=share)


def test_a_normalization_of_other_channels_is_refused(scans: Path, nano: Conversion) -> None:
    two = Normalization([0, 0], [1, 1], [0, 0], [9, 9], 1, "uint16", [0, 100], [0, 0])
    with pytest.raises(ValueError, match="the images have 1 channels, the normalization has 2"):
        read_as_rasters(make_config(scans, nano), two, 1)


def test_a_decoder_in_the_checkpoint_is_kept(
    scans: Path, tiny_arch: dict, tmp_path: Path, randomize_grn: Callable[[nn.Module], nn.Module]
) -> None:
    """It needs no warm-up, and its prediction follows the channels."""
    model = randomize_grn(FCMAE.build(tiny_arch, decoder_channels=24, decoder_depth=2))
    source = convert_state_dict(model.state_dict())
    cfg = make_config(scans, source, epochs=100, batch_size=4)
    cfg.model.backbone.in_channels = 1
    start_from(cfg, source, "somewhere.pth", "mean", tmp_path)
    assert cfg.model.backbone.arch == tiny_arch
    assert (cfg.model.neck.num_channels, cfg.model.neck.depth) == (24, 2)
    assert cfg.model.backbone.init_cfg is None
    hooks = {hook["type"]: hook for hook in cfg.custom_hooks}
    assert hooks["DecoderWarmupHook"].num_iters == 0
    assert [s.type for s in cfg.param_scheduler] == ["LinearLR", "CosineAnnealingLR"]
    written = torch.load(cfg.load_from, weights_only=True)["state_dict"]
    one = FCMAE.build(tiny_arch, in_channels=1, decoder_channels=24, decoder_depth=2)
    one.load_state_dict(written)
    assert torch.equal(one.neck.mask_token, model.neck.mask_token)


# That it trains.


def logged(work_dir: Path, name: str) -> list[float]:
    (log,) = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1:]
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


def quick(**settings: Any) -> dict[str, Any]:
    """Settings for seconds: narrow decoder, no pictures, every loss in the log."""
    options = {
        "model.neck.num_channels": 32,
        "default_hooks.logger.interval": 1,
        "log_processor.window_size": 1,
        "custom_hooks.11.interval": 1000,  # ReconstructionHook
        "train_dataloader.pin_memory": False,
        **settings.pop("cfg_options", {}),
    }
    return (
        dict(batch_size=4, held_out_share=0.2, image_size=64, num_workers=0, cfg_options=options)
        | settings
    )


def test_16_bit_images_continue_without_a_shock(scans: Path, encoder: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    options = {"train_cfg.val_interval": 15, "default_hooks.checkpoint.interval": 15}
    checkpoint = continue_pretraining(
        scans, encoder, work_dir, **quick(epochs=30, base_lr=1.5, cfg_options=options)
    )
    assert checkpoint == work_dir / "epoch_30.pth"
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    assert saved["state_dict"]["backbone.downsample_layers.0.0.weight"].shape == (8, 1, 4, 4)
    assert saved["state_dict"]["neck.prediction.weight"].shape == (32 * 32, 32)

    # The measured figures are in the checkpoint, from the training images alone.
    measured = Normalization.load(work_dir / "normalization.json")
    paths = look_at_images(scans).training_paths(scans, 0.2, "file")
    pixels = np.stack([cv2.imread(path, cv2.IMREAD_UNCHANGED) for path in paths]).astype(float)
    low, high = np.percentile(pixels, (0.1, 99.9))
    assert measured.mean[0] == pytest.approx(pixels.clip(low, high).mean())
    assert measured.num_images == len(paths) < NUM_IMAGES
    preprocessor = Config.fromstring(saved["meta"]["cfg"], ".py").model.data_preprocessor
    assert preprocessor.mean == measured.mean
    assert preprocessor.clip == (measured.low, measured.high)

    curve = logged(work_dir, "loss")
    iterations = 30 * (len(paths) // 4)
    warmup = iterations // 8
    assert len(curve) == iterations
    # A decoder that knows nothing predicts about 0, which costs about 1.
    assert curve[0] == pytest.approx(1.0, abs=0.1)
    before, after = np.array(curve[:warmup]), np.array(curve[warmup:])
    assert after[0] < 0.8 * curve[0]
    assert after.max() < before[-5:].max() * 1.05
    assert after[-5:].mean() < before[-5:].mean()
    signal = json.loads((work_dir / "training_signal.json").read_text())
    assert [record["epoch"] for record in signal["records"]] == [0, 15, 30]
    # The log has each figure as it was measured, not a mean of several.
    held_out = [record["held_out_loss"] for record in signal["records"]]
    assert logged(work_dir, "held_out_loss") == pytest.approx(held_out)


def test_early_stop_returns_the_best(scans: Path, encoder: Path, tmp_path: Path) -> None:
    """At a rate of almost nothing no validation is better by the least difference."""
    checkpoint = continue_pretraining(
        scans,
        encoder,
        tmp_path / "run",
        **quick(epochs=20, base_lr=1e-9, early_stop=2),
    )
    assert checkpoint.name.startswith("best_held_out_loss")
    assert checkpoint.is_file()
    assert len(logged(tmp_path / "run", "loss")) < 20 * (NUM_IMAGES // 8)


def test_resume_takes_the_figures_of_the_run(
    scans: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = quick(epochs=3, cfg_options={"train_cfg.val_interval": 10})
    settings["cfg_options"]["train_cfg.max_epochs"] = 1
    continue_pretraining(scans, encoder, tmp_path / "run", resume=True, **settings)
    with pytest.raises(WorkDirError, match="holds a run already"):
        continue_pretraining(scans, encoder, tmp_path / "run", **settings)
    with pytest.raises(FileNotFoundError, match=r"epoch_9.pth does not exist"):
        gone = tmp_path / "run" / "epoch_9.pth"
        continue_pretraining(scans, encoder, tmp_path / "run", resume=gone, **settings)
    monkeypatch.setattr(
        "mmconvnextv2.apis.continue_pretraining.measure_normalization",
        lambda *_, **__: pytest.fail("measured again"),
    )
    del settings["cfg_options"]["train_cfg.max_epochs"]
    checkpoint = continue_pretraining(scans, encoder, tmp_path / "run", resume=True, **settings)
    assert checkpoint.name == "epoch_3.pth"


def test_8_bit_pictures_stay_rgb(encoder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(16):
        pixels = random.integers(0, 256, (70, 70, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    checkpoint = continue_pretraining(
        tmp_path / "photos", encoder, tmp_path / "run", **quick(epochs=1, held_out_share=0.4)
    )
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    published = torch.load(encoder, weights_only=True)["model"]
    name = "downsample_layers.0.0.weight"
    assert saved["state_dict"][f"backbone.{name}"].shape == published[name].shape
    cfg = Config.fromstring(saved["meta"]["cfg"], ".py")
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert not (tmp_path / "run" / "normalization.json").exists()


def test_a_v1_checkpoint_is_refused_before_anything_is_written(scans: Path, tmp_path: Path) -> None:
    net = ConvNeXtV2("atto", use_grn=False, layer_scale_init_value=1e-6)
    torch.save(net.state_dict(), tmp_path / "v1.pth")
    with pytest.raises(ValueError, match="ConvNeXt V1"):
        continue_pretraining(scans, tmp_path / "v1.pth", tmp_path / "run")
    assert not (tmp_path / "run").exists()
