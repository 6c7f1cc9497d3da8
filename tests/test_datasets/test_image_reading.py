"""Reading image files of every kind: `read_image`, `check_header`, `LoadImage`."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image

from mmconvnextv2.datasets import LoadImage, UnreadableImageError, read_image
from mmconvnextv2.datasets.image_reading import check_header

pytestmark = pytest.mark.unit

HEIGHT, WIDTH = 9, 14


def random_pixels(*channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, *channels), np.uint8)


def save(image, path, **options):
    image.save(path, **options)
    return path


def over_white(colour, alpha):
    """Composite by the definition, in float64."""
    alpha = alpha.astype(np.float64) / 255
    if colour.ndim == 3:
        alpha = alpha[..., None]
    return colour * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_colour_is_returned_as_stored(tmp_path, suffix):
    pixels = random_pixels(3)
    path = save(Image.fromarray(pixels), tmp_path / f"a{suffix}")
    out = read_image(path)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".pgm", ".gif"])
def test_grey_is_repeated_for_rgb_and_kept_for_l(tmp_path, suffix):
    pixels = random_pixels()
    path = save(Image.fromarray(pixels), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(path), np.stack([pixels] * 3, axis=-1))
    np.testing.assert_array_equal(read_image(path, mode="L"), pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".jp2"])
def test_lossy_formats_are_close(tmp_path, suffix):
    row = np.linspace(0, 250, 64).astype(np.uint8)
    pixels = np.stack([np.tile(row, (48, 1))] * 3, axis=-1)
    path = save(Image.fromarray(pixels), tmp_path / f"a{suffix}", quality=95)
    assert np.abs(read_image(path).astype(int) - pixels).max() <= 12


def test_luma_of_colour(tmp_path):
    pixels = random_pixels(3)
    path = save(Image.fromarray(pixels), tmp_path / "a.png")
    expected = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(path, mode="L") - expected).max() <= 1


def test_one_bit(tmp_path):
    bits = random_pixels() > 127
    path = save(Image.fromarray(bits), tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path, mode="L"), np.where(bits, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_rgba_lies_over_white(tmp_path, suffix):
    pixels = random_pixels(4)
    pixels[:, :4, 3], pixels[:, 4:8, 3] = 0, 255
    path = save(Image.fromarray(pixels), tmp_path / f"a{suffix}", lossless=True)
    out = read_image(path)
    # Rounding of Pillow's compositing aside; WebP may drop colours that cannot be seen.
    assert np.abs(out - over_white(pixels[..., :3], pixels[..., 3])).max() <= 1
    assert (out[:, :4] == 255).all()
    np.testing.assert_array_equal(out[:, 4:8], pixels[:, 4:8, :3])


def test_grey_with_alpha_lies_over_white(tmp_path):
    pixels = random_pixels(2)
    path = save(Image.fromarray(pixels, "LA"), tmp_path / "a.png")
    expected = over_white(pixels[..., 0], pixels[..., 1])
    assert np.abs(read_image(path, mode="L") - expected).max() <= 1
    assert np.abs(read_image(path)[..., 2] - expected).max() <= 1


def palette_image():
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    indices = random_pixels()
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    return image, indices, colours


def test_palette(tmp_path):
    image, indices, colours = palette_image()
    path = save(image, tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path), colours[indices])


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_palette_with_one_transparent_entry(tmp_path, suffix):
    image, indices, colours = palette_image()
    entry = int(indices[3, 3])
    path = save(image, tmp_path / f"a{suffix}", transparency=entry)
    colours[entry] = 255
    np.testing.assert_array_equal(read_image(path), colours[indices])


def test_palette_with_alpha_per_entry(tmp_path):
    image, indices, colours = palette_image()
    alphas = np.random.default_rng(2).integers(0, 256, 256, np.uint8)
    path = save(image, tmp_path / "a.png", transparency=alphas.tobytes())
    expected = over_white(colours[indices], alphas[indices])
    assert np.abs(read_image(path) - expected).max() <= 1


def test_transparent_colour_of_an_rgb_png(tmp_path):
    pixels = random_pixels(3)
    key = tuple(int(v) for v in pixels[2, 5])
    path = save(Image.fromarray(pixels), tmp_path / "a.png", transparency=key)
    pixels[(pixels == key).all(-1)] = 255
    np.testing.assert_array_equal(read_image(path), pixels)


def gradient_16bit():
    values = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16)
    values[:8] = [0, 1, 128, 129, 257, 65278, 65407, 65535]
    return values.reshape(HEIGHT, WIDTH)


def scaled_one_by_one(values):
    """Reference: each value on its own, in exact integers, rounded to the nearest."""
    out = [math.floor((2 * int(v) * 255 + 65535) / (2 * 65535)) for v in values.ravel()]
    return np.array(out).reshape(values.shape)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16bit_grey_is_scaled_from_the_full_range(tmp_path, suffix):
    values = gradient_16bit()
    path = save(Image.fromarray(values), tmp_path / f"a{suffix}")
    expected = scaled_one_by_one(values)
    assert expected.min() == 0
    assert expected.max() == 255
    np.testing.assert_array_equal(read_image(path, mode="L"), expected)
    np.testing.assert_array_equal(read_image(path)[..., 1], expected)


def test_16bit_big_endian_tiff_and_pgm(tmp_path):
    values = gradient_16bit()
    big = Image.frombytes("I;16B", (WIDTH, HEIGHT), values.astype(">u2").tobytes())
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.astype(">u2").tobytes())
    for path in (save(big, tmp_path / "a.tif"), pgm):
        np.testing.assert_array_equal(read_image(path, mode="L"), scaled_one_by_one(values))


@pytest.mark.parametrize(("low", "high"), [(-1, 100), (0, 65536)])
def test_integers_outside_16_bits_are_refused(tmp_path, low, high):
    values = np.full((HEIGHT, WIDTH), low, np.int32)
    values[0, 0] = high
    path = save(Image.fromarray(values), tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match=rf"a\.tif.*{low} to {high}.*0\.\.65535"):
        read_image(path)


def test_float_tiff_is_refused_by_name(tmp_path):
    path = save(Image.fromarray(np.ones((HEIGHT, WIDTH), np.float32)), tmp_path / "depth.tif")
    for read in (read_image, check_header):
        with pytest.raises(UnreadableImageError, match=r"depth\.tif.*floating-point"):
            read(path)


def test_cmyk(tmp_path):
    pixels = random_pixels(4)
    path = save(Image.fromarray(pixels, "CMYK"), tmp_path / "a.tif")
    ink = pixels.astype(np.float64) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(read_image(path) - expected).max() <= 1.5


def test_cmyk_jpeg(tmp_path):
    path = save(Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0)), tmp_path / "a.jpg")
    red, green, blue = read_image(path)[4, 4].astype(int)
    assert red <= 5
    assert min(green, blue) >= 250


# How pixels as stored have to be turned, by the EXIF standard's tag 0x0112.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    pixels = random_pixels(3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(pixels), tmp_path / f"a{suffix}", exif=exif)
    np.testing.assert_array_equal(read_image(path), UPRIGHT[orientation](pixels))


def test_exif_rotated_jpeg_changes_its_shape(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(Image.fromarray(random_pixels(3)), tmp_path / "a.jpg", exif=exif)
    assert read_image(path).shape == (WIDTH, HEIGHT, 3)


def test_damaged_exif_leaves_the_picture_as_stored(tmp_path):
    pixels = random_pixels(3)
    path = save(Image.fromarray(pixels), tmp_path / "a.png", exif=b"Exif\0\0 not a TIFF header")
    with pytest.raises(SyntaxError):
        Image.open(path).getexif()
    np.testing.assert_array_equal(read_image(path), pixels)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_first_frame_of_many(tmp_path, suffix):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(read_image(path), np.array(frames[0]))


def test_stereo_jpeg_gives_its_first_picture(tmp_path):
    left, right = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    path = tmp_path / "a.jpg"
    left.save(path, format="MPO", save_all=True, append_images=[right])
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert np.abs(read_image(path).astype(int) - np.array(left)).max() <= 3


def truncated_jpeg(path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


def test_truncated_body_passes_the_header_check_and_fails_to_read(tmp_path):
    path = truncated_jpeg(tmp_path / "cut.jpg")
    check_header(path)
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg.*truncated") as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert "truncated" in caught.value.reason


def test_broken_png_chunk(tmp_path):
    path = save(Image.fromarray(random_pixels(3)), tmp_path / "a.png")
    data = path.read_bytes()
    middle = data.index(b"IDAT") + 8
    path.write_bytes(data[:middle] + b"\xff" * 12 + data[middle + 12 :])
    with pytest.raises(UnreadableImageError, match=r"a\.png"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, check_header])
def test_files_that_are_no_images(tmp_path, read):
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("this is not a picture")
    with pytest.raises(UnreadableImageError, match=r"empty\.jpg.*0 bytes"):
        read(empty)
    with pytest.raises(UnreadableImageError, match=r"text\.jpg.*cannot identify"):
        read(text)
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg.*FileNotFoundError"):
        read(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImageError, match="IsADirectoryError"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_image, check_header])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_single_pixel_sides_are_refused(tmp_path, read, size):
    path = save(Image.new("RGB", size), tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=f"{size[0]}x{size[1]} pixels"):
        read(path)


def test_decompression_bomb_is_refused_from_its_header(tmp_path):
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    for read in (check_header, read_image):
        with pytest.raises(UnreadableImageError, match=r"bomb\.png.*DecompressionBombError"):
            read(path)


def test_content_decides_and_programs_are_never_started(tmp_path):
    pixels = random_pixels(3)
    png = tmp_path / "really_a_png.jpg"
    Image.fromarray(pixels).save(png, format="PNG")
    np.testing.assert_array_equal(read_image(png), pixels)
    eps = tmp_path / "really_an_eps.jpg"
    Image.fromarray(pixels).save(eps, format="EPS")
    with pytest.raises(UnreadableImageError, match="cannot identify"):
        read_image(eps)


def test_reading_modifies_neither_files_nor_pillow(tmp_path):
    path = save(Image.fromarray(random_pixels(3)), tmp_path / "a.jpg")
    before = path.read_bytes(), path.stat().st_mtime_ns, Image.MAX_IMAGE_PIXELS
    read_image(path)
    check_header(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, Image.MAX_IMAGE_PIXELS) == before


def test_unknown_mode():
    with pytest.raises(ValueError, match="'RGB' or 'L', got 'BGR'"):
        read_image("a.png", mode="BGR")


def test_load_image_gives_bgr_and_shapes(tmp_path):
    pixels = random_pixels(3)
    path = save(Image.fromarray(pixels), tmp_path / "a.png")
    load = TRANSFORMS.build({"type": "LoadImage"})
    results = load({"img_path": str(path), "sample_idx": 3})
    np.testing.assert_array_equal(results["img"], pixels[..., ::-1])
    assert results["img"].flags.c_contiguous
    assert results["img_shape"] == results["ori_shape"] == (HEIGHT, WIDTH)
    assert results["sample_idx"] == 3


def test_load_image_in_grey(tmp_path):
    path = save(Image.fromarray(random_pixels()), tmp_path / "a.png")
    results = LoadImage(color_type="grayscale")({"img_path": str(path)})
    assert results["img"].shape == results["img_shape"] == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="got 'unchanged'"):
        LoadImage(color_type="unchanged")
