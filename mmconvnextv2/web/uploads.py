"""What the page takes: limits on a file's bytes and pixels, and reading it."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mmconvnextv2.datasets.image_reading import UnreadableImageError, decode, open_image

MAX_MEGABYTES = 20
"""Size of a file; 1 MB is 2**20 bytes."""

MAX_PIXELS = 64_000_000
"""Width times height, as the file's header states them."""

WORKING_SIDE = 800
"""Longest side in pixels of what detection and segmentation look at; larger pictures shrink."""


def read_upload(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture that somebody sent.

    Args:
        path: The file. Its content decides the format, not its name.

    Returns:
        The picture, RGB and upright.

    Raises:
        ValueError: It is too large, or no picture. One sentence that names the file without its
            folder.
    """
    name = Path(path).name
    megabytes = os.path.getsize(path) / 2**20
    if megabytes > MAX_MEGABYTES:
        raise ValueError(
            f"{name} has {megabytes:.1f} MB, at most {MAX_MEGABYTES} MB are taken: "
            "save it smaller, for example as JPEG"
        )
    try:
        with open_image(path) as image:
            # Before anything is decoded: a small file can announce any number of pixels.
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError(
                    name,
                    f"it has {image.width}x{image.height} pixels, at most "
                    f"{MAX_PIXELS / 1e6:.0f} million are taken: scale it down",
                )
            return decode(image, "RGB")
    except UnreadableImageError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise ValueError(
                f"{name} is no picture of a known kind, such as JPEG or PNG"
            ) from error
        raise ValueError(f"cannot read {name}: {error.reason}") from error


def shrink(image: Image.Image, longest: int = WORKING_SIDE) -> Image.Image:
    """Scale a picture down until no side is longer than `longest`; a smaller one stays."""
    smaller = image.copy()
    smaller.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return smaller
