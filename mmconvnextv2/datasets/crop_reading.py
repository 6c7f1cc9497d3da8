"""Read one crop of an image file at the size a network sees it, decoding no more than it takes."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFile
from torchvision.io import ImageReadMode, decode_jpeg

from mmconvnextv2.datasets.image_reading import decode, orientation

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the upright image; right and bottom are exclusive."""

JPEG_REDUCTIONS = (8, 4, 2)
"""Factors by which a JPEG's decoder can shrink an image as it transforms its 8x8 blocks back."""

MARGIN = 2
"""A reduced box is at least so many times as large as the output, which keeps the difference small.

Pillow's `thumbnail` has the same margin, as `reducing_gap`.
"""


def upright_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Return width and height after the EXIF orientation is applied.

    A JPEG tells both in its header and stays undecoded. Everything else is loaded: there is
    nothing to win by waiting, and the orientation may stand behind the pixels.

    Args:
        image: What `open_image` yields.
    """
    if image.format not in ("JPEG", "MPO"):
        image.load()
    width, height = image.size
    return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)


def read_crop(
    image: ImageFile.ImageFile,
    box: Box,
    size: tuple[int, int],
    mode: Literal["BGR", "L"] = "BGR",
) -> np.ndarray:
    """Decode an image, cut a box out of it and resize that, antialiased and bicubic.

    The result is what `read_image`, a crop and Pillow's `resize(size, BICUBIC)` give, bit by bit,
    except for colour JPEGs and reduced ones, which are read in less time:

    - A box at least 4, 8 or 16 times as wide and as high as `size` is decoded at 1/2, 1/4 or 1/8
      of the scale, which cuts high frequencies off block by block, and resized from there. On
      photographs the result differs by less than 0.8 of 255 levels in the mean, and by less than
      1.5 in the mean over any crop.
    - Otherwise torchvision decodes what is upright, to the same pixels as Pillow, and torch
      resizes them. They differ in rounding: by less than 0.1 levels in the mean, and by less than
      0.3 in the mean over any crop.

    Args:
        image: What `open_image` yields, not decoded before except by `upright_size`.
        box: What to cut out, inside the upright image.
        size: Width and height to resize to, in pixels.
        mode: "BGR" for colour, "L" for grey.

    Returns:
        uint8 array of shape (height, width, 3), channels B, G, R, or (height, width). It may be a
        view that is not contiguous, such as of (3, height, width) in memory.

    Raises:
        Exception: Whatever the decoder raises for a broken file, for `open_image` to translate.
    """
    reduction = _reduce_decoding(image, box, size)
    if reduction == 1 and mode == "BGR":
        pixels_HWC = _read_with_torchvision(image, box, size)
        if pixels_HWC is not None:
            return pixels_HWC
    picture = decode(image, "L" if mode == "L" else "RGB")
    pixels = np.array(_cut_and_resize(picture, box, reduction, size))
    return pixels if mode == "L" else np.ascontiguousarray(pixels[..., ::-1])


def _reduce_decoding(image: ImageFile.ImageFile, box: Box, size: tuple[int, int]) -> int:
    """Tell a JPEG's decoder the smallest scale that leaves `box` larger than `size` by the margin.

    Returns:
        The factor by which the image shrinks, 1 for what cannot be decoded at a reduced scale.
    """
    left, top, right, bottom = box
    shrinking = min((right - left) / size[0], (bottom - top) / size[1])
    for reduction in JPEG_REDUCTIONS:
        # The last row and column of a reduced image may stand for fewer pixels than the others.
        # Turning the image would put them first and shift what a box covers.
        whole = image.width % reduction == image.height % reduction == 0
        if shrinking >= MARGIN * reduction and (whole or orientation(image) == 1):
            reduced = (image.width // reduction, image.height // reduction)
            return 1 if image.draft(None, reduced) is None else reduction
    return 1


def _read_with_torchvision(
    image: ImageFile.ImageFile, box: Box, size: tuple[int, int]
) -> np.ndarray | None:
    """Read a crop of an upright JPEG as (height, width, 3), channels B, G, R; None for the rest."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or orientation(image) != 1:
        return None
    assert image.fp is not None, "the image has been decoded already"
    image.fp.seek(0)
    data = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
    try:
        pixels_CHW = decode_jpeg(data, ImageReadMode.RGB)
    except RuntimeError:
        # Pillow reads some of what torchvision does not, and says what is wrong with the others.
        return None
    left, top, right, bottom = box
    # These kernels are a vectorised form of Pillow's.
    resized_1CHW = torch.nn.functional.interpolate(
        pixels_CHW[None, :, top:bottom, left:right], size[::-1], mode="bicubic", antialias=True
    )
    # In memory the channels stay apart: so they are turned round and packed at next to no cost.
    return resized_1CHW[0].flip(0).permute(1, 2, 0).numpy()


def _cut_and_resize(
    picture: Image.Image, box: Box, reduction: int, size: tuple[int, int]
) -> Image.Image:
    """Resize exactly the box, whose sides fall between the pixels of a reduced picture."""
    left, top, right, bottom = (side / reduction for side in box)
    outer = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    inner = (left - outer[0], top - outer[1], right - outer[0], bottom - outer[1])
    return picture.crop(outer).resize(size, Image.Resampling.BICUBIC, box=inner)
