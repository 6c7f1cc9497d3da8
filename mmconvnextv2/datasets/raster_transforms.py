"""Transforms for images that are not 8-bit RGB: float32, 1 to 16 channels, NaN where missing.

Shape suffixes: H and W pixels, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmpretrain.datasets.transforms import RandomResizedCrop

from mmconvnextv2.datasets.crop_reading import Box
from mmconvnextv2.datasets.image_reading import UnreadableImageError
from mmconvnextv2.datasets.raster_reading import (
    MAX_CHANNELS,
    RasterHeader,
    read_raster_float,
    read_raster_header,
)
from mmconvnextv2.nn.missing import Missing, check_missing


@TRANSFORMS.register_module()
class LoadRaster(BaseTransform):
    """Load an image of any depth with `read_raster_float`, which states how each format is read.

    It stands first in a pipeline of mmpretrain, mmdetection or mmsegmentation, in the place of
    `LoadImageFromFile`. Resizing, cropping and flipping work on what it gives; transforms of
    colour or brightness, and padding of more than 4 channels, do not. Normalise with
    `FCMAEDataPreprocessor`, or last in the pipeline with `NormalizeChannels`.

    Channels come in the file's order, R, G, B for colour, and not in B, G, R as from OpenMMLab's
    loaders: set `to_rgb=False` or `bgr_to_rgb=False` in the data preprocessor.

    Required keys: `img_path`. Added keys: `img` (float32 (H, W, C) in the file's units, such as
    0 to 65535; NaN where a value is missing), `img_shape` and `ori_shape` (H, W).

    Args:
        channels: Number of channels C that every file must have, 1 to 16.
        missing: "refuse" raises an error on a file with missing values, "ignore" makes them NaN.
        no_data: The number that stands for a missing value, beside NaN and a TIFF's own.
        dtype: Name of the number type that every file must have, such as "uint16"; files of
            different types have their values on different scales. None allows any.

    Raises:
        ValueError: `channels` or `missing` is something else.
        TypeError: `dtype` names no number type.
    """

    def __init__(
        self,
        channels: int,
        missing: Missing = "refuse",
        no_data: float | None = None,
        dtype: str | None = None,
    ) -> None:
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"channels must be 1 to {MAX_CHANNELS}, got {channels}")
        check_missing(missing)
        self.channels = channels
        self.missing = missing
        self.no_data = no_data
        self.dtype = None if dtype is None else np.dtype(dtype).name

    def check_header(self, path: str | os.PathLike[str]) -> RasterHeader:
        """Check without decoding that a file has the channels and the number type asked for.

        Args:
            path: The file.

        Returns:
            What it announces.

        Raises:
            UnreadableImageError: It cannot be read, or is of another kind.
        """
        header = read_raster_header(path)
        self._refuse_other_kinds(os.fspath(path), header)
        return header

    def _refuse_other_kinds(self, path: str, header: RasterHeader) -> None:
        if header.channels != self.channels:
            raise UnreadableImageError(
                path, f"{header.channels} channels where {self.channels} are expected"
            )
        if self.dtype is not None and header.dtype != self.dtype:
            raise UnreadableImageError(
                path, f"numbers of type {header.dtype} where {self.dtype} is expected"
            )

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the image to the results.

        Args:
            results: A dict with `img_path`.

        Returns:
            The same dict with the keys named above.

        Raises:
            UnreadableImageError: The file cannot be read, is of another kind, or misses values
                that are refused.
        """
        path = results["img_path"]
        check = partial(self._refuse_other_kinds, path)
        img_HWC = read_raster_float(path, self.missing, self.no_data, check)
        results["img"] = img_HWC
        results["img_shape"] = results["ori_shape"] = img_HWC.shape[:2]
        return results

    def __repr__(self) -> str:
        """Show the settings."""
        return (
            f"{type(self).__name__}(channels={self.channels}, missing={self.missing!r}, "
            f"no_data={self.no_data}, dtype={self.dtype!r})"
        )


@TRANSFORMS.register_module()
class RasterRandomResizedCrop(RandomResizedCrop):
    """Cut a random crop out of a raster and resize it: antialiased, bicubic, in float32.

    It draws the same crops as mmpretrain's `RandomResizedCrop` and `LoadRandomResizedCrop`.

    Required keys: `img`, (H, W, C) or (H, W). Changed keys: `img` (float32), `img_shape` (H, W).

    Args:
        scale: Output size in pixels: (height, width), or the side of a square.
        crop_ratio_range: Range of the crop's share of the image's area.
        aspect_ratio_range: Range of the crop's width / height, drawn uniformly in its logarithm.
        max_attempts: Draws before the largest central crop within that range is taken.

    Raises:
        ValueError: A range is the wrong way round.
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: tuple[float, float] = (0.08, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
    ) -> None:
        super().__init__(scale, crop_ratio_range, aspect_ratio_range, max_attempts)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace the image by the crop.

        Args:
            results: A dict with `img`.

        Returns:
            The same dict with the keys named above.
        """
        top, left, height, width = self.rand_crop_params(results["img"])
        box = (left, top, left + width, top + height)
        return _crop(results, box, (self.scale[1], self.scale[0]))

    def __repr__(self) -> str:
        """Show the settings."""
        return (
            f"{type(self).__name__}(scale={self.scale}, crop_ratio_range={self.crop_ratio_range}, "
            f"aspect_ratio_range={self.aspect_ratio_range}, max_attempts={self.max_attempts})"
        )


@TRANSFORMS.register_module()
class RasterCenterCrop(BaseTransform):
    """Cut the largest central box of the output's shape and resize it, for evaluation.

    Required keys: `img`, (H, W, C) or (H, W). Changed keys: `img` (float32), `img_shape` (H, W).

    Args:
        scale: Output size in pixels: (height, width), or the side of a square.
    """

    def __init__(self, scale: int | Sequence[int]) -> None:
        self.scale = (scale, scale) if isinstance(scale, int) else (scale[0], scale[1])

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace the image by the crop.

        Args:
            results: A dict with `img`.

        Returns:
            The same dict with the keys named above.
        """
        height, width = results["img"].shape[:2]
        factor = min(height / self.scale[0], width / self.scale[1])
        cut_height, cut_width = round(self.scale[0] * factor), round(self.scale[1] * factor)
        top, left = (height - cut_height) // 2, (width - cut_width) // 2
        box = (left, top, left + cut_width, top + cut_height)
        return _crop(results, box, (self.scale[1], self.scale[0]))

    def __repr__(self) -> str:
        """Show the settings."""
        return f"{type(self).__name__}(scale={self.scale})"


@TRANSFORMS.register_module()
class NormalizeChannels(BaseTransform):
    """Clip and normalise any number of channels, last before the image is packed.

    mmengine's data preprocessor, and with it mmdetection's and mmsegmentation's, normalises 1 or
    3 channels only: leave its `mean` and `std` out and use this. Missing values become 0, which
    is the mean; so is what the data preprocessor pads with. The same numbers in
    `FCMAEDataPreprocessor` give the same result.

    Required keys: `img`, (H, W, C), or (H, W) for one channel. Changed keys: `img`, float32
    (H, W, C).

    Args:
        mean: Mean of each channel, in the image's units and in its order of channels.
        std: Standard deviation of each channel.
        low: Lower bound of each channel, to which smaller values are set; None for none.
        high: Upper bound of each channel.
        missing: "refuse" raises an error on NaN, "ignore" sets it to 0.

    Raises:
        ValueError: The lengths differ, a deviation is not positive, or a bound is above the other.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        missing: Missing = "refuse",
    ) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"mean and std must have one entry a channel and std must be positive, "
                f"got mean={tuple(mean)}, std={tuple(std)}"
            )
        for name, bound in (("low", low), ("high", high)):
            if bound is not None and len(bound) != len(mean):
                raise ValueError(f"{name} must have {len(mean)} entries as mean, got {bound}")
        check_missing(missing)
        self.mean = np.array(mean, np.float32)
        self.std = np.array(std, np.float32)
        self.low = np.array([-np.inf] * len(mean) if low is None else low, np.float32)
        self.high = np.array([np.inf] * len(mean) if high is None else high, np.float32)
        self.missing = missing
        if (self.low > self.high).any():
            raise ValueError(f"low must not be above high, got low={low}, high={high}")

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Normalise the image.

        Args:
            results: A dict with `img`.

        Returns:
            The same dict with another `img`.

        Raises:
            ValueError: The image has another number of channels, or a value is missing and
                refused.
        """
        img = results["img"]
        # OpenCV drops the axis of a single channel.
        img_HWC = (img[..., None] if img.ndim == 2 else img).astype(np.float32)
        if img_HWC.shape[-1] != len(self.mean):
            raise ValueError(
                f"{results.get('img_path', 'the image')} has {img_HWC.shape[-1]} channels, but "
                f"NormalizeChannels has {len(self.mean)} means"
            )
        img_HWC = (img_HWC.clip(self.low, self.high) - self.mean) / self.std
        missing_HWC = np.isnan(img_HWC)
        if missing_HWC.any():
            if self.missing == "refuse":
                raise ValueError(
                    f"{results.get('img_path', 'the image')} has {int(missing_HWC.sum()):,} "
                    "missing values (NaN); NormalizeChannels(missing='ignore') sets them to the "
                    "mean"
                )
            img_HWC[missing_HWC] = 0.0
        results["img"] = img_HWC
        return results

    def __repr__(self) -> str:
        """Show the settings."""
        return (
            f"{type(self).__name__}(mean={self.mean.tolist()}, std={self.std.tolist()}, "
            f"low={self.low.tolist()}, high={self.high.tolist()}, missing={self.missing!r})"
        )


def crop_and_resize(pixels: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Cut a box out of an image and resize it: antialiased, bicubic, in float32.

    As with any bicubic filter, results reach a little beyond the range of the pixels beside sharp
    edges. A missing value spreads to all that it takes part in.

    Args:
        pixels: Array (H, W, C) or (H, W).
        box: What to cut out, inside the image.
        size: Width and height to resize to, in pixels.

    Returns:
        float32 array (height, width, C), or (height, width).
    """
    left, top, right, bottom = box
    cut_hwC = np.ascontiguousarray(np.atleast_3d(pixels)[top:bottom, left:right], np.float32)
    x_1Chw = torch.from_numpy(cut_hwC).permute(2, 0, 1)[None].contiguous()
    resized_1CHW = torch.nn.functional.interpolate(
        x_1Chw, size[::-1], mode="bicubic", antialias=True
    )
    resized_HWC = np.ascontiguousarray(resized_1CHW[0].permute(1, 2, 0).numpy())
    return resized_HWC if pixels.ndim == 3 else resized_HWC[..., 0]


def _crop(results: dict[str, Any], box: Box, size: tuple[int, int]) -> dict[str, Any]:
    results["img"] = crop_and_resize(results["img"], box, size)
    results["img_shape"] = results["img"].shape[:2]
    return results
