"""Image files with bytes changed, put in or cut off: pixels or one clear error, nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from damage import damaged
from hypothesis import given
from PIL import Image

from mmconvnextv2.datasets import UnreadableImageError, read_image
from mmconvnextv2.datasets.crop_reading import read_crop, upright_size
from mmconvnextv2.datasets.image_reading import check_header, open_image
from mmconvnextv2.datasets.raster_reading import read_raster, read_raster_header

# Pillow and tifffile warn of much that they nevertheless read.
pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]

SIZE_HW = (24, 33)


def encode(kind: str, mode: str = "RGB", **options: object) -> bytes:
    channels = {"RGB": (3,), "RGBA": (4,), "CMYK": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, *channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, kind, **options)
    return file.getvalue()


def encode_tiff(**options: object) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 2**16, (*SIZE_HW, 4), np.uint16)
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig", **options)
    return file.getvalue()


def encode_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).normal(size=(*SIZE_HW, 5)).astype(np.float32))
    return file.getvalue()


PICTURES = (
    encode("JPEG"),
    encode("JPEG", "CMYK"),
    encode("JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    encode("PNG", "RGBA"),
    encode("GIF", "L"),
    encode("BMP"),
    encode("WEBP"),
    encode("PPM"),
    encode("TIFF", compression="tiff_lzw"),
    encode("JPEG2000"),
)
RASTERS = (encode_tiff(), encode_tiff(compression="zlib", tile=(16, 16)), encode_npy(), PICTURES[3])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The readers decide by the content; the suffix says nothing.
    return tmp_path_factory.mktemp("fuzz") / "image.jpg"


@pytest.fixture(scope="module", autouse=True)
def small_limits() -> Iterator[None]:
    """Refuse from a megapixel on what else would allocate hundreds of megabytes, a case each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 2**19)
        patch.setattr("mmconvnextv2.datasets.raster_reading.BOMB_BYTES", 2**20)
        yield


def pixels_or_error(read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | None:
    try:
        return read(path)
    except UnreadableImageError as error:
        assert str(error).startswith(f"cannot read image {path}: ")
        assert error.reason.strip() and "\n" not in str(error)
        return None


@pytest.mark.fault(7, "pictures with bytes changed, put in or cut off", "read, or one clear error")
@given(data=damaged(PICTURES))
def test_damaged_pictures(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    pixels_HWC = pixels_or_error(read_image, file)
    if pixels_HWC is not None:
        assert pixels_HWC.dtype == np.uint8 and pixels_HWC.ndim == 3 and pixels_HWC.shape[2] == 3
        check_header(file)

    def crop(path: Path) -> np.ndarray:
        with open_image(path) as image:
            width, height = upright_size(image)
            return read_crop(image, (0, 0, width, height), (8, 8))

    cropped_HWC = pixels_or_error(crop, file)
    # One reader takes what the other takes, so it does not matter which a pipeline has.
    assert (cropped_HWC is None) == (pixels_HWC is None)
    assert cropped_HWC is None or cropped_HWC.shape == (8, 8, 3)


@pytest.mark.fault(7, "rasters with bytes changed, put in or cut off", "read, or one clear error")
@given(data=damaged(RASTERS))
def test_damaged_rasters(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    pixels_HWC = pixels_or_error(read_raster, file)
    if pixels_HWC is not None:
        header = read_raster_header(file)
        assert pixels_HWC.shape == (header.height, header.width, header.channels)
        assert pixels_HWC.dtype.name == header.dtype
