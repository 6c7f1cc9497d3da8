"""Read images of 1 to 16 channels at the depth they are stored in: pure functions, no registry.

Shape suffixes: H and W pixels, C channels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import tifffile
from PIL import Image

from mmconvnextv2.datasets.image_reading import (
    IMAGE_SUFFIXES,
    MIN_SIDE,
    UnreadableImageError,
    open_image,
    orientation,
    refuse_empty,
)
from mmconvnextv2.nn.missing import Missing, check_missing

RASTER_SUFFIXES = IMAGE_SUFFIXES | {".npy"}
MAX_CHANNELS = 16

EXACT_IN_FLOAT32 = 2**24
"""Integers up to this size, and no larger ones, are all float32 numbers."""

BOMB_BYTES = 2**28
BOMB_RATIO = 200
"""A TIFF that decodes to more bytes, and to so many times its own, is no picture.

Deflate reaches a ratio of 1032, on zeros alone. A large file that is stored as it is, or compressed
as far as pictures are, is read whatever its size.
"""

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GDAL_NODATA = 42113
_ORIENTATION = 274
_PALETTE = 3

# Pillow silently cuts 16-bit colour of JPEG 2000 and PPM to 8 bits; these have no more.
_PICTURE_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "WEBP", "GIF")
# Channels and number type of the modes in which Pillow opens them.
_PICTURE_MODES = {
    "1": (1, "bool"),
    "L": (1, "uint8"),
    "LA": (2, "uint8"),
    "RGB": (3, "uint8"),
    "RGBA": (4, "uint8"),
    "P": (3, "uint8"),
    "PA": (4, "uint8"),
    "I": (1, "uint16"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
}
_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}
"""Channels by colour type, for those of which Pillow keeps 8 of 16 bits."""


@dataclass(frozen=True)
class RasterHeader:
    """What a file announces.

    Attributes:
        height: Height in pixels, upright.
        width: Width in pixels, upright.
        channels: Number of channels, 1 to 16.
        dtype: Name of the number type, such as "uint16" or "float32".
        pages: Pages that hold a channel each; 1 where one page or array holds all channels.
    """

    height: int
    width: int
    channels: int
    dtype: str
    pages: int = field(default=1, compare=False)


def is_picture(path: str | os.PathLike[str], header: RasterHeader) -> bool:
    """Whether a reader of 8-bit RGB loses nothing of a file but its transparency.

    Args:
        path: The file.
        header: What it announces.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if header.dtype not in ("bool", "uint8") or suffix == ".npy" or header.pages > 1:
        return False
    # In a picture's format the second or fourth channel is transparency; in a TIFF it may be
    # anything.
    return header.channels in (1, 3) or suffix not in (".tif", ".tiff")


def read_raster_header(path: str | os.PathLike[str]) -> RasterHeader:
    """Read size, channels and number type of a file without decoding it.

    Args:
        path: The file.

    Raises:
        UnreadableImageError: `read_raster` cannot read what the header announces.
    """
    with _open_raster(path) as source:
        return source.header


def read_raster(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a file to the numbers that are stored in it.

    - TIFF, by tifffile: one page of several channels, or several pages of one size, which are
      the channels. Several images, stacks of colour pages and palettes are refused, and so is what
      looks like a decompression bomb (`BOMB_RATIO`).
    - NumPy .npy: (H, W) or (H, W, C); (C, H, W) where the first axis alone is at most 16 long.
    - PNG, JPEG, BMP, WebP and GIF (the first frame): grey, colour, either with an alpha channel,
      which stays a channel; 16-bit PNG is not cut. A palette is turned into its colours. CMYK,
      other colour spaces and other formats are refused.

    Channels keep the file's order: R, G, B for colour. An orientation tag is applied.

    Args:
        path: The file. Its content decides the format, not its name.

    Returns:
        Array (H, W, C) of the stored number type.

    Raises:
        UnreadableImageError: The file is missing, broken, smaller than 2x2 pixels, or holds
            something else than 1 to 16 channels of real numbers.
    """
    with _open_raster(path) as source:
        return source.decode()


def read_raster_float(
    path: str | os.PathLike[str],
    missing: Missing = "refuse",
    no_data: float | None = None,
    check: Callable[[RasterHeader], None] | None = None,
) -> np.ndarray:
    """Read a file as float32, with NaN where a value is missing.

    Values keep their units: 65535 of a 16-bit file becomes 65535.0. Integers are exact or refused,
    and float64 is rounded to the 24 bits of float32. Missing is what is NaN or infinite, what
    equals `no_data`, and what equals the no-data value that the TIFF itself names (GDAL).

    Args:
        path: The file; see `read_raster`.
        missing: "refuse" raises an error if any value is missing, "ignore" gives NaN for it.
        no_data: The number that stands for a missing value, in the file's units.
        check: Called with the header before anything is decoded; what it raises ends the reading.

    Returns:
        float32 array (H, W, C).

    Raises:
        ValueError: `missing` is something else.
        UnreadableImageError: `read_raster` cannot read the file, a value is missing and refused,
            all values are missing, or a number does not fit into float32.
    """
    check_missing(missing)
    name = os.fspath(path)
    with _open_raster(name) as source:
        if check is not None:
            check(source.header)
        stored_HWC = source.decode()
        pixels_HWC = _to_float32(stored_HWC)
        missing_HWC = ~np.isfinite(pixels_HWC)
        for value in (no_data, source.no_data):
            if value is not None:
                missing_HWC |= stored_HWC == value
    count = int(missing_HWC.sum())
    if count == 0:
        return pixels_HWC
    if missing == "refuse":
        raise UnreadableImageError(
            name,
            f"{count:,} of {missing_HWC.size:,} values are missing (NaN, infinite or no-data); "
            "repair the file, or choose missing='ignore' to leave them out of the loss",
        )
    if count == missing_HWC.size:
        raise UnreadableImageError(name, "all values are missing (NaN, infinite or no-data)")
    pixels_HWC[missing_HWC] = np.nan
    return pixels_HWC


def _to_float32(stored_HWC: np.ndarray) -> np.ndarray:
    kind, bytes_each = stored_HWC.dtype.kind, stored_HWC.dtype.itemsize
    if kind in "iu" and bytes_each > 2:
        largest = max(abs(int(stored_HWC.min())), abs(int(stored_HWC.max())))
        if largest > EXACT_IN_FLOAT32:
            raise ValueError(
                f"integers up to {largest:,} do not fit into float32, which is exact up to "
                f"{EXACT_IN_FLOAT32:,}; save the file in other units"
            )
    with np.errstate(over="ignore"):
        pixels_HWC = stored_HWC.astype(np.float32)
    if kind == "f" and bytes_each > 4 and (np.isinf(pixels_HWC) & np.isfinite(stored_HWC)).any():
        raise ValueError("numbers beyond 3.4e38 do not fit into float32")
    return pixels_HWC


@dataclass(frozen=True)
class _Source:
    """An open file: its header, how to decode it, and the value it names as missing."""

    header: RasterHeader
    decode: Callable[[], np.ndarray]
    no_data: float | None = None


@contextmanager
def _open_raster(path: str | os.PathLike[str]) -> Iterator[_Source]:
    name = os.fspath(path)
    try:
        refuse_empty(name)
        with open(name, "rb") as file:
            start = file.read(32)
        with ExitStack() as stack:
            if start.startswith(b"\x93NUMPY"):
                source = _open_npy(name)
            elif start.startswith(_TIFF_STARTS):
                source = _open_tiff(stack.enter_context(tifffile.TiffFile(name)))
            else:
                source = _open_picture(name, start, stack.enter_context(open_image(name)))
            _check_header(source.header)
            yield source
    except (UnreadableImageError, MemoryError):
        raise
    # As Pillow's decoders, those of tifffile and numpy have no common error on broken bytes.
    except Exception as error:
        text = " ".join(str(error).split())
        raise UnreadableImageError(name, text or type(error).__name__) from error


def _check_header(header: RasterHeader) -> None:
    if min(header.height, header.width) < MIN_SIDE:
        raise ValueError(
            f"{header.width}x{header.height} pixels, at least {MIN_SIDE}x{MIN_SIDE} needed"
        )
    if not 1 <= header.channels <= MAX_CHANNELS:
        raise ValueError(
            f"{header.channels} channels of {header.width}x{header.height} pixels, 1 to "
            f"{MAX_CHANNELS} allowed; a TIFF keeps them as samples or pages, a .npy as (H, W, C)"
        )
    if header.dtype.rstrip("0123456789") not in ("bool", "int", "uint", "float"):
        raise ValueError(f"numbers of type {header.dtype}; integers or real numbers needed")


def _open_npy(name: str) -> _Source:
    array = np.load(name, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3):
        raise ValueError(f"an array of shape {array.shape}; (H, W), (H, W, C) or (C, H, W) needed")
    if array.ndim == 2:
        array_HWC = array[..., None]
    elif array.shape[0] <= MAX_CHANNELS < array.shape[2]:
        array_HWC = np.moveaxis(array, 0, -1)
    else:
        array_HWC = array
    height, width, channels = array_HWC.shape
    header = RasterHeader(height, width, channels, array.dtype.name)
    return _Source(header, lambda: np.array(array_HWC, order="C"))


def _open_tiff(tiff: tifffile.TiffFile) -> _Source:
    if len(tiff.series) != 1:
        raise ValueError(
            f"{len(tiff.series)} images of different sizes or kinds in one TIFF; "
            "save one image with its channels a file"
        )
    series, page = tiff.series[0], tiff.pages.first
    axes = series.axes
    extra = [axis for axis, letter in enumerate(axes) if letter not in "YX"]
    if "Y" not in axes or "X" not in axes or len(extra) > 1:
        raise ValueError(
            f"a TIFF with the axes {axes} of lengths {tuple(series.shape)}; an image of some "
            "channels, or pages of one channel each, needed"
        )
    tags = page.tags
    if tags.valueof("PhotometricInterpretation") == _PALETTE:
        raise ValueError("a TIFF with palette colours; save the colours themselves")
    order = [axes.index("Y"), axes.index("X"), *extra]
    height, width = (int(series.shape[axis]) for axis in order[:2])
    channels = int(series.shape[extra[0]]) if extra else 1
    tag = tags.valueof(_ORIENTATION, 1)
    pages = channels if extra and axes[extra[0]] != "S" else 1
    dtype = np.dtype(series.dtype).name
    # A tile is decoded whole, also where it is larger than the image.
    values = max(math.prod(series.shape), math.prod(page.chunks))
    _refuse_bomb(values * np.dtype(series.dtype).itemsize, tiff.filehandle.size)
    header = RasterHeader(*_upright_size(height, width, tag), channels, dtype, pages)

    def decode() -> np.ndarray:
        pixels_HWC = series.asarray().transpose(order).reshape(height, width, channels)
        native = np.ascontiguousarray(pixels_HWC, dtype=pixels_HWC.dtype.newbyteorder("="))
        return _turn_upright(native, tag)

    declared = tags.valueof(_GDAL_NODATA)
    no_data = None if declared is None else float(str(declared).strip("\0 "))
    return _Source(header, decode, no_data)


def _refuse_bomb(decoded_bytes: int, file_bytes: int) -> None:
    if decoded_bytes > max(BOMB_BYTES, BOMB_RATIO * file_bytes):
        raise ValueError(
            f"{decoded_bytes:,} bytes in a file of {file_bytes:,}: taken for a decompression bomb; "
            "save it uncompressed, or in tiles of their own files"
        )


def _open_picture(name: str, start: bytes, image: Image.Image) -> _Source:
    if image.format not in _PICTURE_FORMATS:
        raise ValueError(f"format {image.format}, whose depth may be lost; save as PNG or TIFF")
    if image.mode not in _PICTURE_MODES:
        raise ValueError(
            f"colour space {image.mode}; save the file as grey or RGB, or its channels as a TIFF"
        )
    # The first chunk of a PNG holds depth and colour type at fixed places.
    deep = image.format == "PNG" and start[24] == 16
    size = _upright_size(image.height, image.width, orientation(image))
    if deep and start[25] in _PNG_CHANNELS:
        header = RasterHeader(*size, _PNG_CHANNELS[start[25]], "uint16")
        return _Source(header, lambda: _decode_deep_png(name, image, header.channels))
    channels, dtype = _PICTURE_MODES[image.mode]
    header = RasterHeader(*size, channels, dtype)
    return _Source(header, lambda: _decode_picture(image, header))


def _decode_picture(image: Image.Image, header: RasterHeader) -> np.ndarray:
    image.load()
    colours = {"P": "RGB", "PA": "RGBA"}.get(image.mode)
    pixels = np.array(image if colours is None else image.convert(colours))
    # Pillow opens some 16-bit formats as 32-bit integers.
    pixels_HWC = pixels.astype(header.dtype).reshape(*pixels.shape[:2], header.channels)
    return _turn_upright(pixels_HWC, orientation(image))


def _decode_deep_png(name: str, image: Image.Image, channels: int) -> np.ndarray:
    """Decode a 16-bit colour PNG with OpenCV, which turns R, G, B round and grey into colour."""
    decoded = cv2.imdecode(np.fromfile(name, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise ValueError("the PNG's pixels cannot be decoded")
    places = {2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    image.load()  # the orientation may stand behind the pixels
    return _turn_upright(np.ascontiguousarray(decoded[..., places]), orientation(image))


def _upright_size(height: int, width: int, tag: int) -> tuple[int, int]:
    return (width, height) if tag in (5, 6, 7, 8) else (height, width)


def _turn_upright(pixels_HWC: np.ndarray, tag: int) -> np.ndarray:
    """Apply an orientation tag, whose eight values EXIF and TIFF share; 1 is upright."""
    if tag in (5, 6, 7, 8):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    if tag in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if tag in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return np.ascontiguousarray(pixels_HWC)
