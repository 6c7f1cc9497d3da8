"""Reading rasters at their own depth: against the arrays that were written, and Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps

from mmconvnextv2.datasets import UnreadableImageError
from mmconvnextv2.datasets.raster_reading import (
    RasterHeader,
    read_raster,
    read_raster_float,
    read_raster_header,
)

pytestmark = pytest.mark.unit


def random_array(shape, dtype="uint16", seed=0):
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, shape, dtype, endpoint=True)


def png_bytes(pixels_HWC, colour_type, exif=b""):
    """A 16-bit PNG, written by hand from the specification."""
    height, width, _ = pixels_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels_HWC)

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows))]
    if exif:
        parts.append(chunk(b"eXIf", exif))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def check(path, expected_HWC):
    read = read_raster(path)
    assert read.dtype == expected_HWC.dtype.newbyteorder("=") and read.dtype.isnative
    assert np.array_equal(read, expected_HWC)
    height, width, channels = expected_HWC.shape
    assert read_raster_header(path) == RasterHeader(height, width, channels, read.dtype.name)


TIFF_DTYPES = ["uint8", "uint16", "int16", "float16", "float32", "float64", "int32"]


@pytest.mark.parametrize("dtype", TIFF_DTYPES)
def test_tiff_of_one_channel_keeps_every_number(tmp_path, dtype):
    written = random_array((20, 30), dtype)
    tifffile.imwrite(tmp_path / "a.tif", written)
    check(tmp_path / "a.tif", written[..., None])


@pytest.mark.parametrize("channels", [2, 3, 5, 16])
@pytest.mark.parametrize("layout", ["pages", "samples", "planes", "big-endian", "deflated"])
def test_tiff_channels_as_samples_planes_or_pages(tmp_path, channels, layout):
    pixels_HWC = random_array((20, 30, channels))
    pixels_CHW = np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))
    grey = dict(photometric="minisblack")
    if layout == "samples":
        tifffile.imwrite(tmp_path / "a.tif", pixels_HWC, planarconfig="contig", **grey)
    elif layout == "planes":
        tifffile.imwrite(tmp_path / "a.tif", pixels_CHW, planarconfig="separate", **grey)
    else:
        options = dict(byteorder=">") if layout == "big-endian" else {}
        options |= dict(compression="zlib") if layout == "deflated" else {}
        tifffile.imwrite(tmp_path / "a.tif", pixels_CHW, **grey, **options)
    check(tmp_path / "a.tif", pixels_HWC)


def test_tiff_that_pillow_wrote(tmp_path):
    colour = random_array((20, 30, 3), "uint8")
    Image.fromarray(colour).save(tmp_path / "a.tif")
    check(tmp_path / "a.tif", colour)
    pages = [Image.fromarray(page) for page in random_array((4, 20, 30), "uint8")]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    check(tmp_path / "b.tif", np.stack([np.array(page) for page in pages], axis=-1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "bool"])
def test_npy_with_channels_last_first_or_none(tmp_path, dtype):
    pixels_HWC = random_array((20, 30, 5), "uint8" if dtype == "bool" else dtype)
    pixels_HWC = pixels_HWC > 99 if dtype == "bool" else pixels_HWC
    for name, array, expected in [
        ("last", pixels_HWC, pixels_HWC),
        ("first", pixels_HWC.transpose(2, 0, 1).copy(), pixels_HWC),
        ("fortran", np.asfortranarray(pixels_HWC), pixels_HWC),
        ("none", pixels_HWC[..., 0], pixels_HWC[..., :1]),
    ]:
        np.save(tmp_path / f"{name}.npy", array)
        check(tmp_path / f"{name}.npy", expected)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_png_of_every_kind(tmp_path, colour_type, channels):
    pixels_HWC = random_array((20, 30, channels))
    (tmp_path / "a.png").write_bytes(png_bytes(pixels_HWC, colour_type))
    check(tmp_path / "a.png", pixels_HWC)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("L", "LA", "RGB", "RGBA")]
    + [("RGB", "webp"), ("RGBA", "webp"), ("L", "jpg"), ("RGB", "jpg")],
)
def test_eight_bit_pictures(tmp_path, mode, suffix):
    pixels = random_array((20, 30, len(mode)), "uint8").squeeze()
    options = dict(lossless=True, exact=True) if suffix == "webp" else {}
    Image.fromarray(pixels, mode).save(tmp_path / f"a.{suffix}", **options)
    if suffix == "jpg":
        pixels = np.array(Image.open(tmp_path / "a.jpg"))
    check(tmp_path / f"a.{suffix}", pixels.reshape(20, 30, len(mode)))


def test_a_palette_becomes_its_colours_and_one_bit_stays_one_bit(tmp_path):
    colour = Image.fromarray(random_array((20, 30, 3), "uint8")).quantize(16)
    colour.save(tmp_path / "a.png")
    check(tmp_path / "a.png", np.array(colour.convert("RGB")))
    bits = random_array((20, 30), "uint8") > 99
    Image.fromarray(bits).save(tmp_path / "b.png")
    check(tmp_path / "b.png", bits[..., None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_pillow_applies_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(random_array((20, 30, 3), "uint8")).save(tmp_path / "a.jpg", exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    assert np.array_equal(read_raster(tmp_path / "a.jpg"), upright)
    header = read_raster_header(tmp_path / "a.jpg")
    assert (header.height, header.width) == upright.shape[:2]

    # The same turn, of an array that Pillow cannot hold.
    pixels_HWC = random_array((20, 30, 3))
    number_of = np.arange(600, dtype=np.int32).reshape(20, 30)
    turned = Image.fromarray(number_of)
    turned.getexif()[ExifTags.Base.Orientation] = orientation
    places = np.array(ImageOps.exif_transpose(turned))
    expected = pixels_HWC.reshape(600, 3)[places]
    (tmp_path / "b.png").write_bytes(png_bytes(pixels_HWC, 2, exif.tobytes()[6:]))
    assert np.array_equal(read_raster(tmp_path / "b.png"), expected)
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "c.tif", pixels_HWC, photometric="rgb", extratags=tags)
    assert np.array_equal(read_raster(tmp_path / "c.tif"), expected)
    header = read_raster_header(tmp_path / "c.tif")
    assert (header.height, header.width) == expected.shape[:2]


def test_the_content_decides_and_not_the_name(tmp_path):
    written = random_array((20, 30))
    np.save(tmp_path / "a.npy", written)
    (tmp_path / "a.npy").rename(tmp_path / "a.png")
    check(tmp_path / "a.png", written[..., None])


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
def test_every_level_of_sixteen_bits_survives(tmp_path, suffix):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, levels)
    elif suffix == "tif":
        tifffile.imwrite(path, levels)
    else:
        Image.fromarray(levels).save(path)
    read = read_raster_float(path)
    assert read.dtype == np.float32
    assert np.array_equal(read[..., 0].astype(np.int64), levels.astype(np.int64))


def test_missing_values_are_refused_by_name_or_become_nan(tmp_path):
    path = tmp_path / "a.npy"
    written = random_array((20, 30, 2), "float32")
    written[3, 4, 1], written[5, 6, 0], written[7, 8, 0] = np.nan, np.inf, -7.0
    np.save(path, written)
    with pytest.raises(UnreadableImageError, match=r"a\.npy: 2 of 1,200 values are missing"):
        read_raster_float(path)
    with pytest.raises(UnreadableImageError, match="3 of 1,200"):
        read_raster_float(path, no_data=-7.0)
    read = read_raster_float(path, "ignore", no_data=-7.0)
    places = {tuple(place) for place in np.argwhere(np.isnan(read)).tolist()}
    assert places == {(3, 4, 1), (5, 6, 0), (7, 8, 0)}
    assert np.array_equal(read[~np.isnan(read)], written[~np.isnan(read)])


def test_no_data_of_integers_and_of_geotiff(tmp_path):
    written = random_array((20, 30), "int16")
    written[written == -9999] = 0
    written[2, 3] = -9999
    tags = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(tmp_path / "a.tif", written, extratags=tags)
    with pytest.raises(UnreadableImageError, match="1 of 600"):
        read_raster_float(tmp_path / "a.tif")
    assert np.argwhere(np.isnan(read_raster_float(tmp_path / "a.tif", "ignore"))).tolist() == [
        [2, 3, 0]
    ]
    lowest = np.full((20, 30), 1.5, np.float32)
    lowest[0, 1] = np.finfo(np.float32).min
    tags = [(42113, "s", 0, "-3.4028234663852886e+38", True)]
    tifffile.imwrite(tmp_path / "b.tif", lowest, extratags=tags)
    assert np.isnan(read_raster_float(tmp_path / "b.tif", "ignore")).sum() == 1
    # A value that the numbers cannot hold never matches.
    bytes_ = np.zeros((20, 30), np.uint8)
    np.save(tmp_path / "c.npy", bytes_)
    assert not read_raster_float(tmp_path / "c.npy", no_data=-9999).any()


def test_wholly_missing_and_an_unknown_choice(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 4), np.nan))
    with pytest.raises(UnreadableImageError, match="all values are missing"):
        read_raster_float(tmp_path / "a.npy", "ignore")
    with pytest.raises(ValueError, match="'drop'"):
        read_raster_float(tmp_path / "a.npy", "drop")


def test_wide_integers_are_exact_or_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[-(2**24), 2**24], [0, 1]]))
    assert read_raster_float(tmp_path / "a.npy")[0, 1, 0] == 2**24
    np.save(tmp_path / "a.npy", np.array([[2**24 + 1, 0], [0, 1]], np.uint32))
    with pytest.raises(UnreadableImageError, match=r"a\.npy.*16,777,217 do not fit into float32"):
        read_raster_float(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([[1e300, 0.0], [0.0, 1.0]]))
    with pytest.raises(UnreadableImageError, match="do not fit into float32"):
        read_raster_float(tmp_path / "a.npy", "ignore")


def cmyk_jpeg():
    buffer = io.BytesIO()
    Image.new("CMYK", (9, 9)).save(buffer, "JPEG")
    return buffer.getvalue()


def ppm16():
    return b"P6 9 9 65535\n" + bytes(9 * 9 * 6)


def saved(write, *args, **kwargs):
    buffer = io.BytesIO()
    write(buffer, *args, **kwargs)
    return buffer.getvalue()


def two_images():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(random_array((20, 30)))
        writer.write(random_array((10, 15)))
    return buffer.getvalue()


REFUSED = {
    "nothing": (b"", "empty"),
    "text": (b"hello, this is not an image at all", "cannot identify"),
    "17 pages": (saved(tifffile.imwrite, random_array((17, 20, 30))), "17 channels"),
    "17 channels": (saved(np.save, random_array((20, 30, 17))), "17 channels"),
    "four axes": (saved(np.save, random_array((2, 2, 20, 30))), "shape .2, 2, 20, 30."),
    "a row": (saved(np.save, random_array((1, 30, 3))), "30x1 pixels"),
    "complex": (saved(np.save, np.zeros((4, 4), complex)), "complex128"),
    "objects": (saved(np.save, np.array([[{}] * 4] * 4)), "pickle|Object|object"),
    "text array": (saved(np.save, np.array([["a", "b"]] * 2)), "type str32"),
    "stack of colour": (
        saved(tifffile.imwrite, random_array((3, 20, 30, 3), "uint8"), photometric="rgb"),
        "axes",
    ),
    "palette": (saved(Image.new("P", (9, 9)).save, "TIFF"), "palette"),
    "two images": (two_images(), "2 images of different sizes"),
    "CMYK": (cmyk_jpeg(), "CMYK"),
    "16-bit PPM": (ppm16(), "format PPM"),
    "half a TIFF": (saved(tifffile.imwrite, random_array((64, 64)))[:4000], "."),
    "half a TIFF header": (saved(tifffile.imwrite, random_array((64, 64)))[:40], "."),
    "half a npy": (saved(np.save, random_array((64, 64)))[:4000], "."),
    "half a PNG": (png_bytes(random_array((64, 64, 3)), 2)[:4000], "."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, case):
    data, reason = REFUSED[case]
    path = tmp_path / "bad.tif"
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=rf"(?s)bad\.tif: .*({reason})"):
        read_raster(path)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.tif", tmp_path):
        for read in (read_raster, read_raster_header):
            with pytest.raises(UnreadableImageError, match=path.name):
                read(path)


def test_lzw_is_read_or_names_the_package_that_reads_it(tmp_path):
    pixels = random_array((20, 30), "uint8")
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    try:
        read = read_raster(tmp_path / "a.tif")
    except UnreadableImageError as error:
        assert "imagecodecs" in str(error)
        with pytest.raises(ImportError):
            __import__("imagecodecs")
    else:
        assert np.array_equal(read[..., 0], pixels)
