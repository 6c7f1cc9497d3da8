"""Encoders to analyse: from config and checkpoint to a backbone that gets the images it wants.

Shape suffixes: C channels, H and W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from PIL import Image, ImageOps
from torch import Tensor, nn

import mmconvnextv2.models  # noqa: F401  (registers)
from mmconvnextv2.analysis.block_features import block_names
from mmconvnextv2.checkpoint import (
    backbone_state_dict,
    fetch_checkpoint,
    load_strictly,
    read_checkpoint,
    to_our_names,
)
from mmconvnextv2.checkpoint.loading import OUTPUT_NORM
from mmconvnextv2.datasets.image_reading import read_image
from mmconvnextv2.datasets.raster_transforms import NormalizeChannels


@dataclass(frozen=True)
class Encoder:
    """A backbone with the weights of a checkpoint, and how it wants its images.

    Attributes:
        name: what tables and pictures call it.
        backbone: in eval mode.
        normalize: the config's means, deviations and bounds of the channels.
        to_rgb: whether the channels are reversed before, from those that the pipeline reads.
        load_raster: the config's `LoadRaster`, where it has one.
    """

    name: str
    backbone: nn.Module
    normalize: NormalizeChannels
    to_rgb: bool
    load_raster: Mapping[str, Any] | None

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return next(self.backbone.parameters()).device

    def read(self, path: str, image_size: int) -> Tensor:
        """Read an image, fit it to a square by scaling and a central crop, and normalise it.

        Returns:
            float32 ``(C, H, W)``.

        Raises:
            UnreadableImageError: the file is no image of the kind that the config reads.
        """
        if self.load_raster is not None:
            crop = dict(type="RasterCenterCrop", scale=(image_size, image_size))
            pixels_HWC = Compose([self.load_raster, crop])({"img_path": path})["img"]
        else:
            mode: Literal["RGB", "L"] = "L" if len(self.normalize.mean) == 1 else "RGB"
            image = Image.fromarray(read_image(path, mode))
            size = (image_size, image_size)
            pixels = np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC))
            # Pipelines read BGR.
            pixels_HWC = np.atleast_3d(pixels)[..., ::-1]
        if self.to_rgb:
            pixels_HWC = pixels_HWC[..., ::-1]
        x_HWC = self.normalize.transform({"img": pixels_HWC, "img_path": path})["img"]
        return torch.from_numpy(np.ascontiguousarray(x_HWC)).permute(2, 0, 1)


def load_encoder(
    name: str,
    config: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    device: str | torch.device = "cpu",
) -> Encoder:
    """Build the backbone of a config and load it strictly.

    Args:
        name: what tables and pictures call it.
        config: of pre-training, a classifier, detector or segmentor, ours or mmpretrain's.
        checkpoint: path, URL or hub id of a file that holds this backbone, of any publisher where
            it is a ConvNeXt V2 of ours.
        device: where to put it.

    Raises:
        FileNotFoundError: config or checkpoint is not there.
        ValueError: the config has no backbone, or one whose blocks are not known, or does not say
            how to normalise images; or the checkpoint does not fit: only output norms may be
            missing or superfluous.
    """
    cfg = Config.fromfile(config)
    model = cfg.get("model", {})
    if "backbone" not in model:
        raise ValueError(f"{os.fspath(config)} has no model.backbone")
    preprocessor = model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    steps = {step["type"]: step for step in _training_pipeline(cfg)}
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        backbone = MODELS.build({**model.backbone.to_dict(), "init_cfg": None})
    try:
        block_names(backbone)
    except TypeError as error:
        raise ValueError(f"{os.fspath(config)}: {error}") from error
    normalize = _normalization(os.fspath(config), preprocessor, steps)
    tensors = backbone_state_dict(to_our_names(read_checkpoint(fetch_checkpoint(checkpoint))))
    load_strictly(backbone, tensors, OUTPUT_NORM, what="backbone tensors")
    backbone.to(device)
    backbone.eval()  # returns nothing at mmpretrain's backbones
    return Encoder(
        name=name,
        backbone=backbone,
        normalize=normalize,
        to_rgb=preprocessor.get("to_rgb", preprocessor.get("bgr_to_rgb", False)),
        load_raster=steps.get("LoadRaster"),
    )


def _training_pipeline(cfg: Config) -> Sequence[Mapping[str, Any]]:
    dataset: Mapping[str, Any] = (cfg.get("train_dataloader") or {}).get("dataset", {})
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset.get("pipeline", ())


def _normalization(
    config: str, preprocessor: Mapping[str, Any], steps: Mapping[Any, Mapping[str, Any]]
) -> NormalizeChannels:
    """What a config does to its channels, with missing values as the mean."""
    settings = steps.get("NormalizeChannels") or preprocessor
    if not (settings.get("mean") and settings.get("std")):
        raise ValueError(f"{config} has no data_preprocessor with mean and std")
    low, high = settings.get("clip") or (settings.get("low"), settings.get("high"))
    return NormalizeChannels(settings["mean"], settings["std"], low, high, missing="ignore")
