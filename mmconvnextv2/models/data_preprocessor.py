"""Normalise a batch of images and draw its masks, on the way into FCMAE.

Shape suffixes: N batch, C channels, H and W pixels of an image or cells of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor

from mmconvnextv2.nn import CELL_SIZE, random_masking
from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.nn.masking import check_mask_ratio
from mmconvnextv2.nn.missing import Missing, check_missing


@MODELS.register_module()
class FCMAEDataPreprocessor(BaseDataPreprocessor):
    """Move a batch to the device, normalise it, draw one mask an image.

    The mask ratio and the size of a cell are arguments of this class alone.

    Args:
        mean: mean of each channel, in RGB order for colour images, in the pixels' own range.
        std: standard deviation of each channel.
        to_rgb: reverse the channels of 3-channel images, which OpenMMLab's pipelines deliver as
            BGR; False for those of `LoadRaster`, which keeps the file's order.
        mask_ratio: share of cells to remove, strictly between 0 and 1; 0.6 in the paper.
        cell_size: side of the squares that are removed, in pixels, a multiple of 32.
        clip: lower and upper bound of each channel, to which values beyond are set before they are
            normalised, as `measure_normalization` finds them; None clips nothing.
        missing: what to do with missing values, which are NaN: "refuse" raises an error, "ignore"
            lets them pass, for an `FCMAEHead` that ignores them as well. Only images of
            floating-point numbers are looked at.
        non_blocking: copy to the device without waiting.

    Raises:
        ValueError: an argument is outside what is allowed.
    """

    mean: Tensor
    std: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        to_rgb: bool = True,
        mask_ratio: float = 0.6,
        cell_size: int = CELL_SIZE,
        clip: tuple[Sequence[float], Sequence[float]] | None = None,
        missing: Missing = "refuse",
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        if not (_are_numbers(mean) and _are_numbers(std, len(mean)) and min(std) > 0):
            raise ValueError(
                f"mean and std must have one number a channel and std must be positive, "
                f"got mean={mean!r}, std={std!r}"
            )
        check_mask_ratio(mask_ratio)
        check_count("cell_size", cell_size)
        if cell_size % CELL_SIZE:
            raise ValueError(f"cell_size must be a multiple of {CELL_SIZE}, got {cell_size}")
        check_missing(missing)
        low, high = _checked_bounds(clip, len(mean))
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.to_rgb = to_rgb
        self.mask_ratio = mask_ratio
        self.cell_size = cell_size
        self.missing = missing

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepare a batch.

        Args:
            data: a loader's batch: ``inputs``, a list of ``(C, H, W)`` images or one tensor
                ``(N, C, H, W)``, and optionally ``data_samples``.
            training: not used: a mask is drawn for evaluation as well.

        Returns:
            ``dict(inputs, data_samples, mask)``: normalised images ``(N, C, H, W)``, the data
            samples or None, and the mask ``(N, H / 32, W / 32)``, True where a cell is removed.

        Raises:
            ValueError: the images differ in shape, have another number of channels than the mean,
                sides that are not multiples of 32, or missing values that are refused.
        """
        data = self.cast_data(data)
        x_NCHW = _stack(data["inputs"])
        if self.missing == "refuse" and x_NCHW.is_floating_point():
            _refuse_missing(x_NCHW, data.get("data_samples"))
        x_NCHW = self.normalize(x_NCHW)
        mask_NHW = self.draw_mask(len(x_NCHW), (x_NCHW.shape[2], x_NCHW.shape[3]))
        return dict(
            inputs=x_NCHW,
            data_samples=data.get("data_samples"),
            mask=mask_NHW.to(x_NCHW.device, non_blocking=self._non_blocking),
        )

    def normalize(self, x_NCHW: Tensor) -> Tensor:
        """Reverse the channels and clip where asked, subtract the mean, divide by the deviation."""
        channels = x_NCHW.shape[1]
        if channels != self.mean.shape[0]:
            raise ValueError(
                f"the images have {channels} channels, but mean and std have "
                f"{self.mean.shape[0]}; give one entry a channel"
            )
        if self.to_rgb and channels == 3:
            x_NCHW = x_NCHW.flip(1)
        x_NCHW = x_NCHW.float()
        if self.low is not None:
            x_NCHW = x_NCHW.clamp(self.low, self.high)
        return (x_NCHW - self.mean) / self.std

    def draw_mask(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        mask_ratio: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw the masks of a batch on the CPU.

        Args:
            batch_size: number of images N.
            image_size: height and width in pixels, multiples of 32.
            mask_ratio: another share of cells than the one of training.
            generator: CPU generator; torch's global one when None.

        Returns:
            Boolean ``(N, H / 32, W / 32)``, True where a cell is removed.
        """
        height, width = image_size
        if height % CELL_SIZE or width % CELL_SIZE:
            raise ValueError(
                f"FCMAE needs image sides that are multiples of {CELL_SIZE}, got {height}x{width} "
                f"(H x W); change the crop size of the pipeline"
            )
        return random_masking(
            batch_size,
            (height // CELL_SIZE, width // CELL_SIZE),
            self.mask_ratio if mask_ratio is None else mask_ratio,
            cell_scale=self.cell_size // CELL_SIZE,
            generator=generator,
        )


def _stack(inputs: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs
    shapes = {tuple(image.shape) for image in inputs}
    if len(shapes) > 1:
        raise ValueError(f"the images of a batch must have one shape, got {sorted(shapes)}")
    return torch.stack(list(inputs))


def _checked_bounds(
    clip: tuple[Sequence[float], Sequence[float]] | None, channels: int
) -> tuple[Tensor | None, Tensor | None]:
    if clip is None:
        return None, None
    if not (
        isinstance(clip, Sequence)
        and len(clip) == 2
        and all(_are_numbers(bound, channels) for bound in clip)
        and all(low <= high for low, high in zip(*clip, strict=True))
    ):
        raise ValueError(
            f"clip must be a lower and an upper bound for each of {channels} channels, got {clip!r}"
        )
    return _per_channel(clip[0]), _per_channel(clip[1])


def _are_numbers(values: Any, count: int | None = None) -> bool:
    """Whether this is a sequence of finite numbers: at least one, or `count` of them."""
    return (
        isinstance(values, Sequence)
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        and (len(values) > 0 if count is None else len(values) == count)
    )


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def _refuse_missing(x_NCHW: Tensor, data_samples: Sequence[Any] | None) -> None:
    known_N = x_NCHW.isfinite().flatten(1).all(dim=1)
    if known_N.all():
        return
    number = int((~known_N).nonzero()[0])
    name = f"image {number} of the batch"
    if data_samples is not None and "img_path" in data_samples[number]:
        name = data_samples[number].img_path
    raise ValueError(
        f"{name} has missing values (NaN or infinite). Repair the file, or choose "
        "missing='ignore' for LoadRaster, FCMAEDataPreprocessor and FCMAEHead"
    )
