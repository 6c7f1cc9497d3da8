"""One crop of an image file at its final size: `read_crop` against reading the whole image."""

import math

import numpy as np
import pytest
from PIL import Image

from mmconvnextv2.datasets import UnreadableImageError, read_image
from mmconvnextv2.datasets.crop_reading import read_crop, upright_size
from mmconvnextv2.datasets.image_reading import open_image

pytestmark = pytest.mark.unit

ORIENTATIONS = range(1, 9)
# What the docstring of `read_crop` states, in levels of 255: over all crops, over the worst one.
FULL_SCALE_LIMITS = (0.1, 0.3)
REDUCED_LIMITS = (0.8, 1.5)


@pytest.fixture(scope="module")
def photographs():
    pytest.importorskip("skimage", reason="its photographs are the pictures")
    pytest.importorskip("sklearn", reason="its photographs are the pictures")
    from mmconvnextv2.datasets.sample_set.photographs import load_photographs

    return {**load_photographs("train"), **load_photographs("val")}


def whole_then_crop(path, box, size, mode="BGR"):
    """Reference: decode everything, cut, let Pillow resize."""
    whole = Image.fromarray(read_image(path, mode="L" if mode == "L" else "RGB"))
    pixels = np.array(whole.crop(box).resize(size, Image.Resampling.BICUBIC))
    return pixels if mode == "L" else pixels[..., ::-1]


def read(path, box, size, mode="BGR"):
    """Return the crop, and by how much the decoder had reduced the image."""
    with open_image(path) as image:
        width, height = upright_size(image)
        longer = max(width, height)
        pixels = read_crop(image, box, size, mode)
        return pixels, round(longer / max(image.size))


def save(image, path, orientation=1, **options):
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(path, **options)
    return path


def noise(width, height, channels=3, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def random_box(rng, width, height, least=1):
    w, h = rng.integers(least, width + 1), rng.integers(least, height + 1)
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    return tuple(int(side) for side in (left, top, left + w, top + h))


def levels(a, b):
    return np.abs(a.astype(int) - b).mean()


@pytest.mark.parametrize("mode", ["BGR", "L"])
@pytest.mark.parametrize(
    ("suffix", "pillow_mode"),
    [(".png", "RGB"), (".png", "RGBA"), (".png", "P"), (".png", "L"), (".png", "I;16"),
     (".tif", "CMYK"), (".bmp", "RGB"), (".webp", "RGBA")],
)  # fmt: skip
def test_other_formats_come_out_bit_by_bit(tmp_path, suffix, pillow_mode, mode):
    if pillow_mode == "I;16":
        image = Image.fromarray(np.arange(61 * 47, dtype=np.uint16).reshape(47, 61) * 22)
    else:
        channels = {"RGBA": 4, "CMYK": 4}.get(pillow_mode, 3)
        image = noise(61, 47, channels).convert(pillow_mode)
    path = save(image, tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    rng = np.random.default_rng(0)
    for size in [(16, 16), (8, 4), (60, 90)]:
        box = random_box(rng, 61, 47)
        pixels, reduction = read(path, box, size, mode)
        assert reduction == 1
        np.testing.assert_array_equal(pixels, whole_then_crop(path, box, size, mode))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_orientation(tmp_path, suffix, orientation):
    path = save(noise(62, 47), tmp_path / f"a{suffix}", orientation)
    upright = (62, 47) if orientation < 5 else (47, 62)
    with open_image(path) as image:
        assert upright_size(image) == upright
    box = random_box(np.random.default_rng(orientation), *upright, least=20)
    for mode in ("BGR", "L"):
        pixels, _ = read(path, box, (18, 12), mode)
        expected = whole_then_crop(path, box, (18, 12), mode)
        if suffix == ".jpg" and orientation == 1 and mode == "BGR":
            assert np.abs(pixels.astype(int) - expected).max() <= 2
        else:
            np.testing.assert_array_equal(pixels, expected)


def test_the_header_alone_tells_the_size_of_a_jpeg(tmp_path):
    path = save(noise(80, 60), tmp_path / "cut.jpg", orientation=6)
    path.write_bytes(path.read_bytes()[:3000])
    with open_image(path) as image:
        assert upright_size(image) == (60, 80)


def bicubic(pixels_HW, size):
    """Antialiased bicubic resizing by its definition, in float64: Keys' kernel with a = -0.5."""

    def weights(length, target):
        scale = max(1.0, length / target)
        centres = (np.arange(target) + 0.5) * length / target
        x = np.abs((np.arange(length) + 0.5 - centres[:, None]) / scale)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        kernel = np.where(x < 1, near, np.where(x < 2, far, 0))
        return kernel / kernel.sum(1, keepdims=True)

    width, height = size
    down, across = weights(pixels_HW.shape[0], height), weights(pixels_HW.shape[1], width)
    return (down @ pixels_HW @ across.T).clip(0, 255)


@pytest.mark.parametrize(
    "crop", [(224, 224), (500, 375), (300, 200), (170, 390), (390, 170), (96, 80), (1, 40), (40, 1)]
)
def test_resizing_is_as_exact_as_pillow_s(tmp_path, crop, photographs):
    path = save(photographs["motorcycle_left"], tmp_path / "a.jpg", quality=90)
    box = (20, 30, 20 + crop[0], 30 + crop[1])
    ours, reduction = read(path, box, (224, 224))
    assert reduction == 1
    pillow = whole_then_crop(path, box, (224, 224))
    region = read_image(path)[box[1] : box[3], box[0] : box[2]].astype(np.float64)
    exact = np.stack([bicubic(region[..., c], (224, 224)) for c in (2, 1, 0)], axis=-1)
    assert np.abs(ours - exact).mean() <= 1.05 * np.abs(pillow - exact).mean()
    # Both round and clip between the two directions; which comes first depends on the release.
    assert np.abs(ours - exact).max() <= 4


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
@pytest.mark.parametrize("size", [(128, 96), (131, 97), (5, 3)])
def test_decoded_pixels_are_pillow_s(tmp_path, options, size):
    """Resizing to its own size changes nothing, so this compares the decoders."""
    path = save(noise(*size), tmp_path / "a.jpg", quality=80, **options)
    pixels, _ = read(path, (0, 0, *size), size)
    np.testing.assert_array_equal(pixels, read_image(path)[..., ::-1])


def test_grey_and_cmyk_jpeg(tmp_path):
    grey = save(noise(50, 40, 1), tmp_path / "grey.jpg")
    pixels, _ = read(grey, (0, 0, 50, 40), (50, 40))
    np.testing.assert_array_equal(pixels, read_image(grey))
    cmyk = save(noise(50, 40, 4).convert("CMYK"), tmp_path / "cmyk.jpg")
    box = (3, 4, 40, 38)
    np.testing.assert_array_equal(read(cmyk, box, (16, 8))[0], whole_then_crop(cmyk, box, (16, 8)))


def test_photographs_differ_within_the_stated_limits(tmp_path, photographs):
    """At each reduction, at native resolution: enlarged photographs would be too smooth."""
    rng, found = np.random.default_rng(0), {1: [], 2: [], 4: [], 8: []}
    for name, image in photographs.items():
        path = save(image, tmp_path / f"{name}.jpg", quality=90)
        for size in [(224, 224), (112, 112), (48, 56), (24, 24)]:
            box = random_box(rng, *image.size, least=min(image.size) // 2)
            pixels, reduction = read(path, box, size)
            shrinking = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
            assert reduction == max([1] + [r for r in (2, 4, 8) if shrinking >= 2 * r])
            found[reduction].append(levels(pixels, whole_then_crop(path, box, size)))
    for reduction, differences in found.items():
        mean, worst = FULL_SCALE_LIMITS if reduction == 1 else REDUCED_LIMITS
        assert len(differences) >= 2
        assert np.mean(differences) <= mean
        assert max(differences) <= worst
        assert reduction == 1 or min(differences) > 0


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("cut", [(0, 0), (3, 5)])
def test_a_reduced_box_stays_where_it_was(tmp_path, photographs, orientation, cut):
    """In each orientation, also where the reduction does not divide the image's sides."""
    image = photographs["china"].crop((0, 0, 640 - cut[0], 424 - cut[1]))
    path = save(image, tmp_path / "a.jpg", orientation, quality=90)
    width, height = image.size if orientation < 5 else image.size[::-1]
    for box in [(0, 0, 401, 403), (width - 401, height - 399, width, height), (7, 9, 402, 414)]:
        pixels, reduction = read(path, box, (48, 48))
        expected = whole_then_crop(path, box, (48, 48))
        if cut == (0, 0) or orientation == 1:
            assert reduction == 4
            assert levels(pixels, expected) <= REDUCED_LIMITS[1]
        else:
            assert reduction == 1
            np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["BGR", "L"])
def test_grey_output_and_stereo_files_are_reduced_too(tmp_path, photographs, mode):
    left, right = (photographs[f"motorcycle_{side}"] for side in ("left", "right"))
    path = tmp_path / "a.jpg"
    left.save(path, format="MPO", save_all=True, append_images=[right.transpose(1)], quality=90)
    box = (101, 33, 601, 473)
    pixels, reduction = read(path, box, (48, 48), mode)
    assert reduction == 4
    assert levels(pixels, whole_then_crop(path, box, (48, 48), mode)) <= REDUCED_LIMITS[1]


@pytest.mark.parametrize("size", [(64, 64), (8, 8)])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_jpeg_is_named(tmp_path, share, size):
    path = save(noise(200, 160), tmp_path / "cut.jpg")
    data = path.read_bytes()
    path.write_bytes(data[: math.floor(share * len(data))])
    # The crop lies in the part that is there: whether a file is refused must not depend on it.
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg.*truncated"):
        read(path, (0, 0, 100, 40), size)


def test_bytes_after_the_end_change_nothing(tmp_path, photographs):
    plain = save(photographs["chelsea"], tmp_path / "a.jpg")
    padded = tmp_path / "b.jpg"
    padded.write_bytes(plain.read_bytes() + b"\0" * 100)
    for size in [(224, 224), (48, 48)]:
        pixels = [read(path, (40, 30, 400, 280), size)[0] for path in (plain, padded)]
        np.testing.assert_array_equal(*pixels)


def test_damaged_bodies_are_read_as_pillow_reads_them(tmp_path):
    """Most wrong bytes go unnoticed by a JPEG decoder: the same pixels, or a refusal by both."""
    path = save(noise(96, 80), tmp_path / "a.jpg")
    data, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(30):
        damaged = bytearray(data)
        for position in rng.integers(700, len(data) - 2, 3):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            expected = read_image(path)
        except UnreadableImageError:
            refused += 1
            with pytest.raises(UnreadableImageError):
                read(path, (0, 0, 96, 80), (96, 80))
        else:
            pixels, _ = read(path, (0, 0, 96, 80), (96, 80))
            np.testing.assert_array_equal(pixels, expected[..., ::-1])
    assert 0 < refused < 30


def test_the_file_stays_as_it_is(tmp_path):
    path = save(noise(200, 160), tmp_path / "a.jpg")
    before = path.read_bytes(), path.stat().st_mtime_ns
    read(path, (0, 0, 200, 160), (16, 16))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
