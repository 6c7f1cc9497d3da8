"""Lets a pre-trained FCMAE fill in images: from config, checkpoint and files to one picture.

Shape suffixes: C channels, H and W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from PIL import Image, ImageOps
from torch import Tensor

from mmconvnextv2.apis.machine import choose_device
from mmconvnextv2.apis.run_config import build_model, checkpoint_of, config_of, load_config
from mmconvnextv2.checkpoint import load_strictly, read_checkpoint, to_our_names
from mmconvnextv2.datasets.image_reading import IMAGE_SUFFIXES, read_image
from mmconvnextv2.datasets.image_scan import resolve_folder, scan_folder
from mmconvnextv2.datasets.raster_reading import RASTER_SUFFIXES
from mmconvnextv2.models import FCMAE
from mmconvnextv2.visualization.files import save_png
from mmconvnextv2.visualization.prediction import draw_reconstructions


def reconstruct(
    images: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | Config | None = None,
    num_images: int = 8,
    seed: int = 0,
    mask_ratio: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
) -> Image.Image:
    """Draw original, masked, prediction and composite of some images, one row per image.

    Args:
        images: An image file, or a folder that is searched with all folders below it.
        checkpoint: What a pre-training run saved, with encoder and decoder, or the folder of the
            run, whose newest checkpoint is taken.
        out: PNG to write, atomically; nothing is written without it.
        config: Config file of that run, or the loaded config; found by the checkpoint when None.
        num_images: Most images to show. From a folder with more, evenly spaced ones are taken.
        seed: Seed of the masks.
        mask_ratio: Share of cells to remove, inside (0, 1); by default the config's.
        image_size: Side in pixels, or (height, width), multiples of 32. By default the size of
            the config's training crops. Images are resized to cover it and cropped centrally.
        device: Where to run the model: "cpu", "cuda" or "auto".

    Returns:
        The grid, RGB.

    Raises:
        FileNotFoundError: Config, checkpoint or images are not there.
        ValueError: The checkpoint cannot be read safely, has no config or no decoder or does not
            fit the config; a folder holds no image or an image cannot be read; the config is not
            of an FCMAE; or an argument is out of its range.
    """
    if num_images < 1:
        raise ValueError(f"the number of images must be at least 1, got {num_images}")
    file = checkpoint_of(checkpoint)
    state_dict = _read_with_decoder(file)
    cfg = config_of(file) if config is None else load_config(config)
    pipeline = training_pipeline(cfg)
    raster = next((step for step in pipeline if step["type"] == "LoadRaster"), None)
    suffixes = IMAGE_SUFFIXES if raster is None else RASTER_SUFFIXES
    paths = pick_images(Path(images), num_images, suffixes)
    size_HW = training_size(pipeline) if image_size is None else _checked_size(image_size)
    device = choose_device(device)
    model = _build(cfg)
    load_strictly(model, state_dict)
    model.to(device)
    preprocessor: Any = model.data_preprocessor
    if raster is None:
        channels = preprocessor.mean.numel()
        inputs = [_read_input(path, size_HW, channels) for path in paths]
    else:
        inputs = [_read_raster_input(path, size_HW, raster) for path in paths]
    grid = draw_reconstructions(model, inputs, seed=seed, mask_ratio=mask_ratio)
    if out is not None:
        save_png(grid, out)
    return grid


def pick_images(
    path: Path, count: int | None = None, suffixes: Collection[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """An image file, or images of a folder: evenly spaced ones where there are more than `count`.

    Args:
        path: a file, or a folder that is searched with all folders below it.
        count: most images; all when None.
        suffixes: of images, in lower case.

    Raises:
        FileNotFoundError: there is neither.
        TooFewImagesError: the folder has no image.
    """
    if path.is_file():
        return [path]
    found = scan_folder(resolve_folder(path), suffixes).images
    wanted = len(found) if count is None else min(count, len(found))
    indices = np.linspace(0, len(found) - 1, wanted).round().astype(int)
    return [Path(found[index]) for index in indices]


def _read_with_decoder(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint safely, and refuse one without decoder."""
    state_dict = to_our_names(read_checkpoint(path))
    if not any(name.startswith("neck.") for name in state_dict):
        raise ValueError(
            f"{os.fspath(path)} has no decoder: none of its {len(state_dict)} tensors is named "
            "neck.*, so it is encoder-only, as all published ConvNeXt V2 weights are. An encoder "
            "alone cannot reconstruct. Use a checkpoint written by pre-training with this project "
            "(work_dirs/.../epoch_*.pth): it always holds encoder and decoder"
        )
    return state_dict


def training_pipeline(config: Config) -> Sequence[Mapping[str, Any]]:
    """The steps that a config's training images go through; none where it names none."""
    dataset: Mapping[str, Any] = config.get("train_dataloader", {}).get("dataset", {})
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset.get("pipeline", [])


def training_size(pipeline: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Height and width of the training crops, in pixels.

    Args:
        pipeline: what `training_pipeline` returns.

    Raises:
        ValueError: no crop tells, or a side is no multiple of 32.
    """
    return _checked_size(_training_crop(pipeline))


def _training_crop(pipeline: Sequence[Mapping[str, Any]]) -> int | tuple[int, int]:
    """Output size of the last crop of the training pipeline: a side, or (height, width)."""
    for transform in reversed(pipeline):
        if str(transform["type"]).endswith("Crop"):
            # (Load)RandomResizedCrop calls it scale, RandomCrop and CenterCrop crop_size.
            return transform["scale"] if "scale" in transform else transform["crop_size"]
    raise ValueError(
        "the config's training pipeline has no crop that tells the size of the images; "
        "give the image size yourself"
    )


def _checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 32 or height % 32 or width % 32:
        raise ValueError(
            f"image height and width must be positive multiples of 32, got {height}x{width}"
        )
    return height, width


def _build(config: Config) -> FCMAE:
    model = build_model(config)
    if not isinstance(model, FCMAE):
        raise ValueError(f"the config builds a {type(model).__name__}; reconstruction needs FCMAE")
    return model


def _read_input(path: Path, size_HW: tuple[int, int], channels: int) -> Tensor:
    """Read an image as a pipeline would give it: uint8 (C, H, W), blue first."""
    if channels not in (1, 3):
        raise ValueError(
            f"the config's model takes {channels} channels; image files give 1 (grey) or 3"
        )
    pixels = read_image(path, mode="RGB" if channels == 3 else "L")
    height, width = size_HW
    fitted = ImageOps.fit(Image.fromarray(pixels), (width, height), Image.Resampling.BICUBIC)
    image_HWC = torch.from_numpy(np.array(fitted).reshape(height, width, channels))
    return image_HWC.permute(2, 0, 1).flip(0)


def _read_raster_input(
    path: Path, size_HW: tuple[int, int], load_raster: Mapping[str, Any]
) -> Tensor:
    """Read an image at its own depth, as the config's pipeline would: float32 (C, H, W)."""
    steps = Compose([load_raster, dict(type="RasterCenterCrop", scale=size_HW)])
    return torch.from_numpy(steps({"img_path": str(path)})["img"]).permute(2, 0, 1)
