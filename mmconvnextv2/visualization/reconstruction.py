"""Draws what an FCMAE reconstructs: original, masked, prediction and composite, side by side.

Shape suffixes: N images, C channels, H and W pixels, h and w cells of the mask, P the four panels.
A suffix `_NHWC` on a picture means uint8 RGB with C = 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Numbers = Tensor | Sequence[float]
"""One number a channel, in any shape."""

PANELS = ("original", "masked", "prediction", "composite")
REMOVED_GREY = 127

_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)
_COMFORTABLE_SIDE = 160  # pixels; smaller images are enlarged until their mean side reaches it
_NARROWEST_TILE = 96  # pixels; what the longest label needs in a small but readable size


def unnormalize(
    x_NCHW: Tensor,
    mean: Numbers,
    std: Numbers,
    value_range: tuple[Numbers, Numbers] | None = None,
    channels: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Turn normalised pixels back into pictures.

    Computes `x * std + mean`, scales that from `value_range` to 0..255, rounds and clips; what is
    not a number becomes black. One channel is shown as grey, two as red and green, and of more
    than three the first three are shown, if no others are chosen.

    Args:
        x_NCHW: Normalised images (N, C, H, W), channels in RGB order, any floating dtype.
        mean: The C means that were subtracted; any shape of C numbers.
        std: The C deviations that were divided by, in the same units.
        value_range: The C values to show as black and the C to show as full brightness, in those
            units; 0 and 255 by default.
        channels: One to three numbers of channels to show, from 0.

    Returns:
        uint8 array (N, H, W, 3), RGB.

    Raises:
        ValueError: The images are not 4-D; mean, std or a bound of the range does not hold C
            numbers; or a chosen channel does not exist.
    """
    if x_NCHW.dim() != 4:
        raise ValueError(f"images must be (N, C, H, W), got shape {tuple(x_NCHW.shape)}")
    count = x_NCHW.shape[1]
    mean_C11 = _per_channel(mean, count, "mean")
    std_C11 = _per_channel(std, count, "std")
    x_NCHW = x_NCHW.detach().cpu().float() * std_C11 + mean_C11
    if value_range is not None:
        low_C11, high_C11 = (_per_channel(bound, count, "value_range") for bound in value_range)
        span_C11 = high_C11 - low_C11
        # A constant channel has equal bounds and shows as black.
        x_NCHW = torch.where(span_C11 > 0, (x_NCHW - low_C11) * 255 / span_C11, 0)
    if channels is not None:
        x_NCHW = x_NCHW[:, _checked_channels(channels, count)]
    x_NCHW = torch.nan_to_num(x_NCHW, nan=0.0).round().clamp(0, 255).to(torch.uint8)
    return _as_rgb(x_NCHW.permute(0, 2, 3, 1).numpy())


def reconstruction_panels(
    x_NCHW: Tensor,
    reconstruction_NCHW: Tensor,
    mask_Nhw: Tensor,
    mean: Numbers,
    std: Numbers,
    value_range: tuple[Numbers, Numbers] | None = None,
    channels: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Compute the four pictures of every image: original, masked, prediction, composite.

    The composite is the prediction with the visible pixels pasted back: FCMAE is trained on
    removed cells only, so what it predicts elsewhere is unconstrained noise.

    Args:
        x_NCHW: Normalised input images (N, C, H, W).
        reconstruction_NCHW: Predicted pixels in the same normalised space and shape.
        mask_Nhw: bool (N, h, w), True = removed; H/h = W/w is the side of a cell in pixels.
        mean: The C means of the normalisation.
        std: The C deviations of the normalisation.
        value_range: What to show as black and as full brightness; see `unnormalize`.
        channels: Which channels to show; see `unnormalize`.

    Returns:
        uint8 array (N, 4, H, W, 3) in the order of `PANELS`; removed cells are grey
        (`REMOVED_GREY`) in the second.

    Raises:
        ValueError: The shapes do not belong together, or the mask is not boolean.
    """
    if x_NCHW.shape != reconstruction_NCHW.shape:
        raise ValueError(
            f"images and reconstruction must have one shape, got {tuple(x_NCHW.shape)} "
            f"and {tuple(reconstruction_NCHW.shape)}"
        )
    shown = mean, std, value_range, channels
    original_NHWC = unnormalize(x_NCHW, *shown)
    prediction_NHWC = unnormalize(reconstruction_NCHW, *shown)
    removed_NHW1 = _mask_of_pixels(mask_Nhw, original_NHWC.shape[:3])[..., None]
    masked_NHWC = np.where(removed_NHW1, np.uint8(REMOVED_GREY), original_NHWC)
    composite_NHWC = np.where(removed_NHW1, prediction_NHWC, original_NHWC)
    return np.stack([original_NHWC, masked_NHWC, prediction_NHWC, composite_NHWC], axis=1)


@dataclass(frozen=True)
class GridLayout:
    """Where the panels of a grid lie, in pixels.

    Attributes:
        rows: Number of images.
        height: Height of one image before enlargement.
        width: Width of one image before enlargement.
        scale: Integer factor by which every pixel is enlarged.
        margin: White border around the grid.
        gap: White space between panels.
        header: Height of the row of labels.
    """

    rows: int
    height: int
    width: int
    scale: int
    margin: int = 12
    gap: int = 6
    header: int = 30

    @classmethod
    def for_images(cls, rows: int, height: int, width: int) -> GridLayout:
        """Choose the enlargement: images below 160 px grow, so that a 64-px image can be seen."""
        side = math.sqrt(height * width)
        scale = max(1, math.ceil(_COMFORTABLE_SIDE / side), math.ceil(_NARROWEST_TILE / width))
        header = max(24, min(44, width * scale // 8))
        return cls(rows, height, width, scale, header=header)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture."""
        columns = len(PANELS)
        width = 2 * self.margin + columns * self.width * self.scale + (columns - 1) * self.gap
        height = 2 * self.margin + self.header + self.rows * self.height * self.scale
        return width, height + (self.rows - 1) * self.gap

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of the panel in one row and column."""
        left = self.margin + column * (self.width * self.scale + self.gap)
        top = self.margin + self.header + row * (self.height * self.scale + self.gap)
        return left, top


def reconstruction_grid(
    x_NCHW: Tensor,
    reconstruction_NCHW: Tensor,
    mask_Nhw: Tensor,
    mean: Numbers,
    std: Numbers,
    value_range: tuple[Numbers, Numbers] | None = None,
    channels: Sequence[int] | None = None,
) -> Image.Image:
    """Draw a grid: one row per image, the columns original, masked, prediction and composite.

    Images whose mean side is below 160 px are enlarged by an integer factor, without
    interpolation; larger ones keep their size. `GridLayout.for_images(N, H, W)` tells where
    each panel lies.

    Args:
        x_NCHW: Normalised input images (N, C, H, W), N >= 1.
        reconstruction_NCHW: Predicted pixels in the same normalised space and shape.
        mask_Nhw: bool (N, h, w), True = removed; H/h = W/w is the side of a cell in pixels.
        mean: The C means of the normalisation.
        std: The C deviations of the normalisation.
        value_range: What to show as black and as full brightness; see `unnormalize`.
        channels: Which channels to show; see `unnormalize`.

    Returns:
        An RGB picture with a header row of labels.

    Raises:
        ValueError: The shapes do not belong together, there is no image, or the mask is not
            boolean.
    """
    panels_NPHWC = reconstruction_panels(
        x_NCHW, reconstruction_NCHW, mask_Nhw, mean, std, value_range, channels
    )
    rows, _, height, width, _ = panels_NPHWC.shape
    if rows == 0:
        raise ValueError("a reconstruction grid needs at least one image, got a batch of 0")
    layout = GridLayout.for_images(rows, height, width)
    canvas = Image.new("RGB", layout.size, _BACKGROUND)
    _draw_labels(canvas, layout)
    tile = (width * layout.scale, height * layout.scale)
    for row in range(rows):
        for column in range(len(PANELS)):
            panel = Image.fromarray(panels_NPHWC[row, column])
            enlarged = panel.resize(tile, Image.Resampling.NEAREST)
            canvas.paste(enlarged, layout.corner(row, column))
    return canvas


def _checked_channels(channels: Sequence[int], count: int) -> list[int]:
    if not 1 <= len(channels) <= 3 or any(not 0 <= channel < count for channel in channels):
        raise ValueError(
            f"channels must be one to three numbers from 0 to {count - 1}, got {tuple(channels)}"
        )
    return list(channels)


def _per_channel(values: Numbers, channels: int, name: str) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32).detach().cpu()
    if tensor.numel() != channels:
        raise ValueError(
            f"{name} must hold one number per channel: the images have {channels} channels, "
            f"{name} has shape {tuple(tensor.shape)}"
        )
    return tensor.reshape(channels, 1, 1)


def _as_rgb(x_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    channels = x_NHWC.shape[-1]
    if channels == 1:
        return np.repeat(x_NHWC, 3, axis=-1)
    if channels == 2:
        return np.concatenate([x_NHWC, np.zeros_like(x_NHWC[..., :1])], axis=-1)
    return np.ascontiguousarray(x_NHWC[..., :3])


def _mask_of_pixels(mask_Nhw: Tensor, shape_NHW: tuple[int, ...]) -> NDArray[np.bool_]:
    """Repeat every cell of a mask over the pixels that it covers, after checking the shapes."""
    if mask_Nhw.dtype != torch.bool:
        raise ValueError(f"the mask must be boolean (True = removed), got dtype {mask_Nhw.dtype}")
    images, height, width = shape_NHW
    shapes = f"mask {tuple(mask_Nhw.shape)}, images {images} of {height}x{width} pixels"
    if mask_Nhw.dim() != 3 or mask_Nhw.shape[0] != images or 0 in mask_Nhw.shape[1:]:
        raise ValueError(f"the mask must be (N, h, w) with the images' N: {shapes}")
    rows, columns = mask_Nhw.shape[1:]
    cell = height // rows
    if (rows * cell, columns * cell) != (height, width):
        raise ValueError(f"the mask does not divide the images into square cells: {shapes}")
    mask = mask_Nhw.detach().cpu().numpy()
    return mask.repeat(cell, axis=1).repeat(cell, axis=2)


def _draw_labels(canvas: Image.Image, layout: GridLayout) -> None:
    draw = ImageDraw.Draw(canvas)
    tile = layout.width * layout.scale
    font = ImageFont.load_default(size=max(12, min(26, tile // 10)))
    for column, label in enumerate(PANELS):
        left, top = layout.corner(0, column)
        centre = (left + tile / 2, top - layout.header / 2 - layout.gap / 2)
        draw.text(centre, label, fill=_INK, font=font, anchor="mm")
