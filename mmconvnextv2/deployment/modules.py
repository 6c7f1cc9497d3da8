"""From a config and a checkpoint to a plain module: images in, tensors out.

Shape suffixes: N batch, C channels, H and W pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from mmconvnextv2.analysis.complexity import build_model
from mmconvnextv2.checkpoint import backbone_state_dict, load_strictly, read_checkpoint
from mmconvnextv2.checkpoint.loading import OUTPUT_NORM
from mmconvnextv2.nn import ConvNeXtV2

PARTS = ("backbone", "model")
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Pixels:
    """Images as a network was trained on them, before normalisation.

    Attributes:
        order: of the channels, such as "RGB".
        mean: one value a channel, in units of pixel values 0 to 255.
        std: likewise.
    """

    order: str = "RGB"
    mean: list[float] | None = None
    std: list[float] | None = None


class Deployable(nn.Module):
    """Normalisation, a network and outputs in float32: what is exported.

    Args:
        network: maps normalised images to a tuple of tensors.
        output_names: names of these tensors.
        pixels: what the network was trained on.
        normalize: take pixel values 0 to 255, and normalise them.
        fixed_shape: height and width where the network works at one size only.

    Raises:
        ValueError: it shall normalise and there is no mean and std.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self,
        network: nn.Module,
        output_names: tuple[str, ...],
        pixels: Pixels,
        normalize: bool = True,
        fixed_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.output_names = output_names
        self.pixels = pixels
        self.normalize = normalize
        self.fixed_shape = fixed_shape
        self.compute_dtype = torch.float32
        if normalize:
            if not (pixels.mean and pixels.std):
                raise ValueError(
                    "the config's data_preprocessor gives no mean and std: leave normalisation to "
                    "the caller with --no-normalize"
                )
            self.register_buffer("mean_C11", torch.tensor(pixels.mean).view(-1, 1, 1))
            self.register_buffer("std_C11", torch.tensor(pixels.std).view(-1, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def expects(self) -> str:
        """The input, in words."""
        if self.normalize:
            return f"{self.pixels.order}, pixel values 0 to 255"
        if self.pixels.mean and self.pixels.std:
            return f"{self.pixels.order}, (pixels - {self.pixels.mean}) / {self.pixels.std}"
        return f"{self.pixels.order}, normalised as in training"

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return next(m.in_channels for m in self.modules() if isinstance(m, ConvNeXtV2))

    def forward(self, image_NCHW: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs.

        Args:
            image_NCHW: float32 ``(N, C, H, W)``; pixel values 0 to 255 where the module
                normalises, normalised ones where it does not.

        Returns:
            float32 tensors, in the order of `output_names`.
        """
        if self.normalize:
            image_NCHW = (image_NCHW - self.mean_C11) / self.std_C11
        outputs = self.network(image_NCHW.to(self.compute_dtype))
        return tuple(output.float() for output in outputs)


class ClassLogits(nn.Module):
    """An mmpretrain classifier as images -> ``(logits (N, classes),)``, no softmax."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor]:
        """Classify normalised images."""
        return (self.classifier(x_NCHW, mode="tensor"),)


class SegmentationLogits(nn.Module):
    """An mmseg encoder-decoder as images -> ``(logits (N, classes, H, W),)``.

    As mmseg's whole-image inference: the head's map is enlarged to the image by interpolation. The
    segmentor is changed: its auxiliary head is dropped, and the batch norms of its head become part
    of the convolutions.
    """

    def __init__(self, segmentor: Any) -> None:
        from mmcv.cnn import fuse_conv_bn  # whoever has a segmentor has mmcv

        super().__init__()
        segmentor.auxiliary_head = None  # only trains
        fuse_conv_bn(segmentor.eval().decode_head)
        self.segmentor = segmentor

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor]:
        """Segment normalised images."""
        head = self.segmentor.decode_head
        logits_NCHW = head(self.segmentor.extract_feat(x_NCHW))
        size = x_NCHW.shape[-2:]
        return (
            F.interpolate(logits_NCHW, size, mode="bilinear", align_corners=head.align_corners),
        )


def load_deployable(
    config: str | os.PathLike[str] | Config,
    checkpoint: str | os.PathLike[str],
    part: str = "model",
    normalize: bool = True,
) -> Deployable:
    """Build what is exported, with the weights of a checkpoint.

    Args:
        config: config file of a classifier or segmentor, or the loaded config; with "backbone" of
            any task.
        checkpoint: its checkpoint, loaded strictly.
        part: "model", or "backbone" for the feature maps of all four stages. Output norms belong
            to them where the config has one for each map, as detectors and segmentors do. A
            classifier's only norm has seen averages of positions: its maps are raw, as an FCMAE
            encoder's.
        normalize: take pixel values 0 to 255 and normalise them with the config's mean and std.

    Raises:
        FileNotFoundError: config or checkpoint are not there.
        ValueError: the config is of another task, has no mean and std, or the checkpoint does not
            fit; the message says which.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if not isinstance(config, Config):
        # A backbone needs none of the packages that the config's task imports.
        config = Config.fromfile(config, import_custom_modules=part == "model")
    if not isinstance(config.get("model"), dict):
        raise ValueError("the config has no model")
    fixed_shape = None
    network: nn.Module
    if part == "backbone":
        network, names = _load_backbone(config, checkpoint), tuple(f"stage{i + 1}" for i in STAGES)
    else:
        kind = _class_name(config.model)
        if kind not in ("ImageClassifier", "EncoderDecoder"):
            raise ValueError(
                f"the config's model is {kind}; whole models are exported of ImageClassifier and "
                f"EncoderDecoder, of others the backbone alone: --part backbone "
                f"(docs/deployment.md says what a detector takes)"
            )
        model = _load_model(config, checkpoint)
        names = ("logits",)
        if kind == "ImageClassifier":
            network = ClassLogits(model)
        else:
            network, fixed_shape = SegmentationLogits(model), _crop(config)
    return Deployable(network, names, _pixels(config), normalize, fixed_shape)


def _load_backbone(config: Config, checkpoint: str | os.PathLike[str]) -> ConvNeXtV2:
    """The plain backbone with four maps, whatever the config's own task wants of it."""
    if "backbone" not in config.model or _class_name(config.model.backbone) != "ConvNeXtV2":
        raise ValueError("--part backbone needs a config whose model.backbone is a ConvNeXtV2")
    settings = config.model.backbone.to_dict()
    for name in ("type", "init_cfg", "frozen_stages", "mask_layout", "with_cp"):
        settings.pop(name, None)
    configured = ConvNeXtV2(**settings)
    maps = configured.out_indices == STAGES and not configured.gap_before_final_norm
    norms = maps and settings.get("output_norms", True)
    settings.update(out_indices=STAGES, gap_before_final_norm=False, output_norms=norms)
    backbone = ConvNeXtV2(**settings)
    tensors = backbone_state_dict(read_checkpoint(checkpoint))
    if not norms:
        tensors = {key: value for key, value in tensors.items() if not OUTPUT_NORM.match(key)}
    load_strictly(backbone, tensors, what="backbone tensors")
    return backbone


def _load_model(config: Config, checkpoint: str | os.PathLike[str]) -> Any:
    model = build_model(config)
    if not isinstance(model.backbone, ConvNeXtV2):
        raise ValueError(
            f"the config's backbone is {type(model.backbone).__name__}; this exports ConvNeXtV2"
        )
    load_strictly(model, read_checkpoint(checkpoint))
    return model


def _crop(config: Config) -> tuple[int, int]:
    """The size that a segmentor was trained at."""
    size = _preprocessor(config).get("size")
    if size is None:
        raise ValueError("the config's data_preprocessor gives no size: give one with --shape")
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _pixels(config: Config) -> Pixels:
    settings = _preprocessor(config)
    if config.model.backbone.get("in_channels", 3) != 3:
        order = "channels as in training"
    else:  # pipelines deliver BGR
        order = "RGB" if settings.get("to_rgb") or settings.get("bgr_to_rgb") else "BGR"
    mean, std = settings.get("mean"), settings.get("std")
    return Pixels(order, mean and list(mean), std and list(std))


def _preprocessor(config: Config) -> dict[str, Any]:
    return config.model.get("data_preprocessor") or config.get("data_preprocessor") or {}


def _class_name(settings: dict[str, Any]) -> str:
    kind = settings.get("type")
    return kind.split(".")[-1] if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
