"""The reconstruction tool: the picture against a forward pass by hand, and what it refuses."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from PIL import Image

from mmconvnextv2 import nn
from mmconvnextv2.apis.reconstruct import reconstruct

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
ARCH = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
MEAN, STD = np.array([120.0, 110.0, 100.0]), np.array([50.0, 60.0, 70.0])
CONFIG = f"""
default_scope = "mmpretrain"
custom_imports = dict(imports=["mmconvnextv2.models"], allow_failed_imports=False)
model = dict(
    type="FCMAE",
    backbone=dict(type="ConvNeXtV2", arch={ARCH}, gap_before_final_norm=False, output_norms=False),
    neck=dict(type="FCMAEDecoder", in_channels=32, num_channels=16),
    head=dict(type="FCMAEHead"),
)
data_preprocessor = dict(
    type="FCMAEDataPreprocessor", mean={MEAN.tolist()}, std={STD.tolist()}, to_rgb=True
)
train_dataloader = dict(
    dataset=dict(
        type="StatelessDataset",
        dataset=dict(
            type="ImageFolder",
            pipeline=[
                dict(type="LoadImage"),
                dict(type="RandomResizedCrop", scale=(64, 96), crop_ratio_range=(0.2, 1.0)),
                dict(type="PackInputs"),
            ],
        ),
    ),
)
"""  # this transform takes its scale as (height, width)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "visualizations" / "vis_reconstruction.py"
    spec = importlib.util.spec_from_file_location("vis_reconstruction", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plain(randomize_grn) -> nn.FCMAE:
    model = nn.FCMAE.build(ARCH, decoder_channels=16)
    return randomize_grn(model).eval()


@pytest.fixture
def files(tmp_path, plain: nn.FCMAE) -> Path:
    (tmp_path / "config.py").write_text(CONFIG)
    torch.save({"state_dict": plain.state_dict(), "meta": {"epoch": 1}}, tmp_path / "run.pth")
    folder = tmp_path / "images" / "nested"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number, size in enumerate([(200, 100), (90, 150), (96, 64), (70, 70), (300, 200)]):
        pixels = generator.integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not an image")
    return tmp_path


def arguments(files: Path, *more: str, images: str = "images", weights: str = "run.pth") -> list:
    out = str(files / "out.png")
    return [str(files / n) for n in ("config.py", weights, images)] + ["--out", out, *more]


def covering_crop(path: Path, width: int, height: int) -> np.ndarray:
    """Resize to cover and crop the centre, in the plain way: two steps, sides rounded up."""
    image = Image.open(path).convert("RGB")
    scale = max(width / image.width, height / image.height)
    size = round(image.width * scale), round(image.height * scale)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def tiles(path: Path, rows: int, height: int, width: int, scale: int, header: int) -> np.ndarray:
    """Cut the panels (rows, 4, height, width, 3) out of a picture, at their original size."""
    picture = np.asarray(Image.open(path))
    panels = np.empty((rows, 4, height, width, 3), dtype=np.uint8)
    for row in range(rows):
        for column in range(4):
            top = 12 + header + row * (height * scale + 6)
            left = 12 + column * (width * scale + 6)
            panels[row, column] = picture[top:, left:][: height * scale : scale,
                                                       : width * scale : scale]  # fmt: skip
    return panels


def test_the_picture_shows_what_the_model_computes(files, tool, plain, capsys) -> None:
    assert tool.main(arguments(files, "--num", "3", "--seed", "5")) == 0
    assert str(files / "out.png") in capsys.readouterr().out
    panels = tiles(files / "out.png", 3, 64, 96, scale=3, header=36)
    chosen = [files / "images" / "nested" / f"{number}.png" for number in (0, 2, 4)]
    for row, path in enumerate(chosen):
        difference = panels[row, 0].astype(int) - covering_crop(path, 96, 64)
        assert np.abs(difference).mean() < 3, path
    assert np.array_equal(panels[1, 0], np.asarray(Image.open(chosen[1])))

    mask = nn.random_masking(3, (2, 3), 0.6, generator=torch.Generator().manual_seed(5))
    x = torch.from_numpy((panels[:, 0] - MEAN) / STD).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        prediction = plain(x, mask=mask, mode="predict").permute(0, 2, 3, 1).double().numpy()
    expected = (prediction * STD + MEAN).clip(0, 255)
    assert np.abs(panels[:, 2] - expected).max() <= 0.51
    removed = mask.numpy().repeat(32, axis=1).repeat(32, axis=2)
    assert (panels[:, 1][removed] == 127).all()
    assert np.array_equal(panels[:, 1][~removed], panels[:, 0][~removed])
    assert np.array_equal(panels[:, 3][~removed], panels[:, 0][~removed])
    assert np.array_equal(panels[:, 3][removed], panels[:, 2][removed])


def test_a_16_bit_image_keeps_its_depth(tmp_path, randomize_grn) -> None:
    """Steps of 1/65535 are visible: cut to 8 bit, the picture would be one grey."""
    model = randomize_grn(nn.FCMAE.build(ARCH, in_channels=1, decoder_channels=16))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "run.pth")
    (tmp_path / "config.py").write_text(CONFIG)
    config = Config.fromfile(tmp_path / "config.py")
    config.model.backbone.in_channels = config.model.neck.image_channels = 1
    low, high = [1000.0], [1255.0]
    config.data_preprocessor.update(mean=[1100.0], std=[50.0], clip=(low, high))
    config.train_dataloader.dataset.dataset.pipeline = [
        dict(type="LoadRaster", channels=1),
        dict(type="RasterRandomResizedCrop", scale=(64, 96)),
    ]
    ramp = 1000 + np.arange(96, dtype=np.uint16)[None, :].repeat(64, axis=0)
    tifffile.imwrite(tmp_path / "ramp.tif", ramp)
    reconstruct(tmp_path / "ramp.tif", tmp_path / "run.pth", tmp_path / "out.png", config=config)
    original = tiles(tmp_path / "out.png", 1, 64, 96, scale=3, header=36)[0, 0]
    assert np.array_equal(original, (ramp - 1000)[..., None].repeat(3, axis=2))


def test_one_image_another_size_and_ratio(files, tool) -> None:
    options = ["--size", "64", "128", "--mask-ratio", "0.3"]
    assert tool.main(arguments(files, *options, images="images/nested/1.png")) == 0
    panels = tiles(files / "out.png", 1, 64, 128, scale=2, header=32)
    grey_cells = (panels[0, 1] == 127).all(axis=-1).reshape(2, 32, 4, 32).all(axis=(1, 3))
    assert grey_cells.sum() == 8 - int(8 * 0.7)


def test_an_encoder_alone_is_refused(files, tool, plain, capsys) -> None:
    encoder = OrderedDict((k, v) for k, v in plain.state_dict().items() if "backbone" in k)
    torch.save({"state_dict": encoder}, files / "encoder.pth")
    assert tool.main(arguments(files, weights="encoder.pth")) == 1
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.count("\n") == 1
    for words in ("no decoder", "neck.*", "encoder-only", "published ConvNeXt V2", "pre-training"):
        assert words in streams.err
    assert not (files / "out.png").exists()


def test_an_official_encoder_is_refused_as_well(files, tool, plain, capsys) -> None:
    torch.save({"model": dict(plain.backbone.state_dict())}, files / "official.pth")
    assert tool.main(arguments(files, weights="official.pth")) == 1
    assert "no decoder" in capsys.readouterr().err


class Surprise:
    """An object that only an unsafe load would bring back."""


@pytest.mark.parametrize(
    "content,words",
    [
        ({"state_dict": {"neck.mask_token": torch.zeros(16)}}, "does not fit"),
        ({"surprise": Surprise()}, "cannot be read as a checkpoint"),
        ([1, 2], "no state_dict"),
    ],
)
def test_other_checkpoints_that_do_not_serve_are_refused(
    files, tool, capsys, content: object, words: str
) -> None:
    torch.save(content, files / "bad.pth")
    assert tool.main(arguments(files, weights="bad.pth")) == 1
    assert words in capsys.readouterr().err
    assert not (files / "out.png").exists()


@pytest.mark.parametrize(
    "more,words",
    [
        (["--num", "0"], "at least 1, got 0"),
        (["--mask-ratio", "1.2"], "got 1.2"),
        (["--size", "100"], "multiples of 32, got 100x100"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_options_out_of_range_are_refused(
    files, tool, capsys, monkeypatch, more: list, words: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tool.main(arguments(files, *more)) == 1
    assert words in capsys.readouterr().err
    assert not (files / "out.png").exists()


def test_files_that_are_not_there_or_no_images_are_refused(files, tool, capsys) -> None:
    (files / "empty").mkdir()
    for names, words in (
        (dict(images="nowhere"), "nowhere"),
        (dict(images="empty"), "no image in"),
        (dict(images="images/nested/notes.txt"), "cannot read image"),
        (dict(weights="nowhere.pth"), "nowhere.pth"),
    ):
        assert tool.main(arguments(files, **names)) == 1
        assert words in capsys.readouterr().err
    (files / "config.py").unlink()
    assert tool.main(arguments(files)) == 1
    assert "config.py" in capsys.readouterr().err


def test_a_config_without_a_size_or_of_another_model_is_refused(files) -> None:
    config = Config.fromfile(files / "config.py")
    config.pop("train_dataloader")
    with pytest.raises(ValueError, match="give the image size"):
        reconstruct(files / "images", files / "run.pth", config=config)
    grid = reconstruct(
        files / "images", files / "run.pth", config=config, image_size=64, num_images=1
    )
    assert grid.size == (2 * 12 + 4 * 192 + 3 * 6, 2 * 12 + 24 + 192)
    config.model = dict(type="ConvNeXtV2", arch="atto")
    config.pop("data_preprocessor")
    with pytest.raises(ValueError, match="builds a ConvNeXtV2"):
        reconstruct(files / "images", files / "run.pth", config=config, image_size=64)


def test_a_model_of_grey_images_gets_grey_images(files, randomize_grn) -> None:
    config = Config.fromfile(files / "config.py")
    config.model.backbone.in_channels = config.model.neck.image_channels = 1
    config.data_preprocessor.update(mean=[100.0], std=[50.0])
    model = randomize_grn(nn.FCMAE.build(ARCH, in_channels=1, decoder_channels=16))
    torch.save(model.state_dict(), files / "grey.pth")
    image = files / "images" / "nested" / "2.png"
    reconstruct(image, files / "grey.pth", files / "g.png", config=config)
    panels = tiles(files / "g.png", 1, 64, 96, scale=3, header=36)
    grey = np.asarray(Image.open(image).convert("L"))
    assert np.array_equal(panels[0, 0], grey[..., None].repeat(3, axis=-1))
