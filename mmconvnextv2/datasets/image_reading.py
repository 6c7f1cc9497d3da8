"""Read any image file as 8-bit colour or grey: pure functions on top of Pillow."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

# The raster formats that Pillow decodes itself. A file is opened as one of these whatever its
# name says; EPS, for example, would start an external program.
PIL_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000")
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .webp .tif .tiff .gif "
    ".ppm .pgm .pbm .pnm .jp2 .j2k".split()
)
MIN_SIDE = 2
PAPER_WHITE = (255, 255, 255, 255)

_DIRECT_MODES = ("1", "L", "RGB")
_CONVERTED_MODES = ("P", "CMYK", "YCbCr", "LAB", "RGBX")
_ALPHA_MODES = ("LA", "PA", "RGBA")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class UnreadableImageError(ValueError):
    """A file that cannot be read as an image. The message names the file and the reason.

    Attributes:
        path: The file as it was given.
        reason: Why it cannot be read, in one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        """One line for people."""
        return f"cannot read image {printable(self.path)}: {self.reason}"


def printable(path: str) -> str:
    """Return a path as a log file takes it: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def read_image(
    path: str | os.PathLike[str],
    mode: Literal["RGB", "L"] = "RGB",
    data: bytes | None = None,
) -> np.ndarray:
    """Decode an image file to 8 bits a channel, upright.

    - EXIF orientation is applied.
    - Transparency (alpha channel, transparent palette entry or colour) is laid over white, the
      paper that most such pictures are drawn for; the colours under transparent pixels are
      arbitrary and never show.
    - 16-bit grey is scaled linearly from the full range 0..65535, whatever part of it is used:
      value / 257, rounded. Sensors with fewer bits give dark images; scale such files beforehand.
    - 16-bit colour is cut to its high byte, by Pillow. CMYK and other colour spaces are converted.
    - Of an animation or a multi-page file the first frame is read.

    Args:
        path: The file. Its content decides the format, not its name.
        mode: "RGB" for colour (grey is repeated), "L" for grey (ITU-R 601 luma of colour).
        data: As of `open_image`.

    Returns:
        uint8 array of shape (H, W, 3), channels R, G, B, for "RGB"; (H, W) for "L".

    Raises:
        ValueError: `mode` is neither "RGB" nor "L".
        UnreadableImageError: The file is missing, broken, too large or too small, or holds
            pixels without a defined brightness (float, or integers outside 0..65535).
    """
    if mode not in ("RGB", "L"):
        raise ValueError(f"mode must be 'RGB' or 'L', got {mode!r}")
    with open_image(path, data) as image:
        return np.array(decode(image, mode))


def check_header(path: str | os.PathLike[str]) -> None:
    """Check without decoding that a file announces an image that `read_image` may read.

    Args:
        path: The file.

    Raises:
        UnreadableImageError: It is missing, empty, of an unknown or unsupported kind, smaller
            than 2x2 pixels, or so large that Pillow takes it for a decompression bomb.
    """
    with open_image(path):
        pass


def refuse_empty(path: str) -> None:
    """Check that a file holds anything, which a pipe or a device does not.

    Raises:
        UnreadableImageError: It has 0 bytes.
        OSError: It is not there.
    """
    if os.path.getsize(path) == 0:
        raise UnreadableImageError(path, "the file is empty (0 bytes)")


@contextmanager
def open_image(
    path: str | os.PathLike[str], data: bytes | None = None
) -> Iterator[ImageFile.ImageFile]:
    """Open an image file for a `with` block and check its header; the pixels are not decoded yet.

    Args:
        path: The file.
        data: Its bytes, where they come from elsewhere: `path` is then a name for messages alone.

    Yields:
        The image as Pillow opens it: as stored, before its orientation is applied.

    Raises:
        UnreadableImageError: `check_header` refuses the file, or anything fails in the block.
    """
    name = os.fspath(path)
    try:
        if data is None:
            refuse_empty(name)
        elif not data:
            raise UnreadableImageError(name, "it is empty (0 bytes)")
        file: str | io.BytesIO = name if data is None else io.BytesIO(data)
        with Image.open(file, formats=PIL_FORMATS) as image:
            _check_size_and_mode(name, image)
            yield image
    except (UnreadableImageError, MemoryError):
        raise
    # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError,
    # KeyError, DecompressionBombError and more on broken bytes: there is no common base class.
    except Exception as error:
        raise UnreadableImageError(name, _one_line(error)) from error


def _check_size_and_mode(name: str, image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE:
        raise UnreadableImageError(
            name, f"{image.width}x{image.height} pixels, at least {MIN_SIDE}x{MIN_SIDE} needed"
        )
    readable = _DIRECT_MODES + _CONVERTED_MODES + _ALPHA_MODES + _SIXTEEN_BIT_MODES
    if image.mode not in readable:
        kind = "floating-point pixels (mode F)" if image.mode == "F" else f"mode {image.mode}"
        raise UnreadableImageError(
            name, f"{kind} have no defined range; save the file as 8-bit or 16-bit integers"
        )


def decode(image: Image.Image, mode: Literal["RGB", "L"]) -> Image.Image:
    """Decode an opened image upright and in 8 bits a channel, as `read_image` describes.

    Args:
        image: What `open_image` yields.
        mode: "RGB" or "L".

    Returns:
        A Pillow image of that mode.
    """
    image.load()
    upright = image if orientation(image) == 1 else ImageOps.exif_transpose(image)
    return _to_8bit(upright).convert(mode)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation: 1 is upright, which a damaged EXIF block counts as, too.

    Args:
        image: An opened image. What is not a JPEG has to be loaded before: a PNG may keep its
            EXIF block behind the pixels, and Pillow turns a TIFF upright as it loads it.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _to_8bit(image: Image.Image) -> Image.Image:
    """Bring any accepted mode to 1, L or RGB, or to a colour space that converts to them."""
    if image.mode in _SIXTEEN_BIT_MODES:
        return _scale_16bit(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, PAPER_WHITE), rgba).convert("RGB")
    # Palettes and colour spaces reach "L" by way of RGB, so that both modes show one picture.
    return image if image.mode in _DIRECT_MODES else image.convert("RGB")


def _scale_16bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ValueError(
            f"integer pixels from {lowest} to {highest} are outside 0..65535; "
            "save the file as 8-bit or 16-bit integers"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
