"""Duplicates: a slow search over all pairs, real pictures changed in known ways, any bit depth."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from mmconvnextv2.analysis.duplicates import (
    FREQUENCIES,
    ORIENTATIONS,
    SIDE,
    find_matches,
    fingerprint,
)

pytestmark = pytest.mark.unit


def scene(seed: int, side: int = 96, channels: int = 3) -> np.ndarray:
    """A picture with a natural spectrum: noise whose amplitude falls as 1 / frequency."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    noise = random.standard_normal((channels, side, side)) + 2 * random.standard_normal(
        (side, side)
    )
    values = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    low, high = values.min(), values.max()
    return (255 * (values - low) / (high - low)).round().astype(np.uint8).transpose(1, 2, 0)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def noisy(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 5, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


COPIES = {
    "jpeg": lambda image: jpeg(image, 30),
    "half the size": lambda image: resized(image, (48, 48)),
    "another aspect": lambda image: resized(image, (80, 130)),
    "darker": lambda image: (0.4 * image + 10).astype(np.uint8),
    "16 bit": lambda image: image.astype(np.uint16) * 200,
    "float": lambda image: image.astype(np.float32) / 255 - 0.5,
    "blurred": lambda image: gaussian_filter(image, (1, 1, 0)),
    "noisy": noisy,
    "grey": lambda image: np.asarray(Image.fromarray(image).convert("L")),
}


@pytest.mark.parametrize("name", COPIES)
def test_changed_copies_are_near_duplicates(name: str) -> None:
    originals = [scene(i) for i in range(8)]
    copies = [COPIES[name](image) for image in originals]
    matches = find_matches([*map(fingerprint, copies)], [*map(fingerprint, originals)])
    assert [(m.query, m.reference) for m in matches] == [(i, i) for i in range(8)]
    assert {m.orientation for m in matches} == {"as it is"}
    assert not any(m.exact for m in matches)


def test_other_pictures_are_none() -> None:
    queries = [fingerprint(scene(i)) for i in range(100)]
    assert find_matches(queries) == []


TURNS = {
    "as it is": lambda image: image,
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "turned by 180 degrees": lambda image: np.rot90(image, 2),
    "turned by 90 degrees to the left": lambda image: np.rot90(image, 1),
    "turned by 90 degrees to the right": lambda image: np.rot90(image, -1),
    "mirrored along the diagonal": lambda image: image.swapaxes(0, 1),
    "mirrored along the other diagonal": lambda image: np.rot90(image, 2).swapaxes(0, 1),
}


def test_every_orientation_has_its_name() -> None:
    assert set(TURNS) == set(ORIENTATIONS)
    original = scene(3)
    for name, turn in TURNS.items():
        copy = noisy(np.ascontiguousarray(turn(original)))
        (match,) = find_matches([fingerprint(copy)], [fingerprint(original)])
        assert match.orientation == name


def slow_spectrum(grey_HW: np.ndarray) -> np.ndarray:
    """The definition in loops: cosine transform (type II) of the small picture, weighted."""
    picture = Image.fromarray((grey_HW - grey_HW.mean()).astype(np.float32))
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    result = np.zeros((FREQUENCIES, FREQUENCIES))
    positions = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    for u in range(FREQUENCIES):
        for v in range(FREQUENCIES):
            wave = np.cos(u * positions)[:, None] * np.cos(v * positions)[None]
            scale = (1 if u else 0.5**0.5) * (1 if v else 0.5**0.5)
            result[u, v] = scale * (small * wave).sum() * (u * u + v * v) ** 0.5
    return result / np.linalg.norm(result)


def test_spectrum_is_the_weighted_cosine_transform() -> None:
    image = scene(5, side=70)
    expected = slow_spectrum(image.astype(np.float64).mean(axis=2))
    np.testing.assert_allclose(fingerprint(image).spectrum_FF, expected, atol=1e-5)


def test_search_equals_all_pairs_one_by_one() -> None:
    random = np.random.default_rng(0)
    pictures = [scene(i % 8, side=40) for i in range(24)]
    for i, picture in enumerate(pictures):
        if i % 3:
            pictures[i] = noisy(np.ascontiguousarray(random.choice([np.fliplr, np.rot90])(picture)))
    plain = [fingerprint(picture).spectrum_FF for picture in pictures]
    turned = [[fingerprint(turn(p)).spectrum_FF for turn in TURNS.values()] for p in pictures]

    def cosine(i: int, j: int) -> float:
        return max(float((way * plain[j]).sum()) for way in turned[i])

    expected = {}
    for i in range(1, 24):
        same = [j for j in range(i) if np.array_equal(pictures[i], pictures[j])]
        j = max(range(i), key=lambda j: cosine(i, j))
        if same:
            expected[i] = (same[0], True)
        elif cosine(i, j) >= 0.95:
            expected[i] = (j, False)
    assert {exact for _, exact in expected.values()} == {True, False}
    for chunk_size in (1, 7, 1000):
        found = find_matches([*map(fingerprint, pictures)], chunk_size=chunk_size)
        assert [m.query for m in found] == list(expected)
        for match in found:
            j, exact = expected[match.query]
            assert match.exact == exact and match.reference < match.query
            if exact:
                assert match.reference == j
            else:  # of references that are copies of each other, any may be the nearest
                assert match.similarity == pytest.approx(cosine(match.query, j), abs=1e-5)
                assert cosine(match.query, match.reference) == pytest.approx(
                    match.similarity, abs=1e-5
                )


def test_what_remains_has_no_duplicates() -> None:
    prints = [fingerprint(noisy(scene(i % 5)) if i > 9 else scene(i % 5)) for i in range(20)]
    matches = find_matches(prints)
    left = [one for i, one in enumerate(prints) if i not in {m.query for m in matches}]
    assert len(left) == 5 and find_matches(left) == []


def test_one_step_of_16_bits_is_another_image() -> None:
    image = scene(1).astype(np.uint16) * 257
    changed = image.copy()
    changed[0, 0, 0] += 1
    (match,) = find_matches([fingerprint(changed)], [fingerprint(image)])
    assert not match.exact and match.similarity > 0.9999
    (match,) = find_matches([fingerprint(image.copy())], [fingerprint(image)])
    assert match.exact
    # The upper bytes alone are the 8-bit image: near, not the same.
    (match,) = find_matches([fingerprint((image >> 8).astype(np.uint8))], [fingerprint(image)])
    assert not match.exact


def test_images_without_contrast_are_duplicates_only_if_they_are_the_same() -> None:
    flat = [np.full((40, 40, 1), value, np.uint16) for value in (7, 7, 8, 60000)]
    matches = find_matches([*map(fingerprint, flat)])
    assert [(m.query, m.reference, m.exact) for m in matches] == [(1, 0, True)]
    other_shape = flat[0].reshape(20, 80, 1)
    assert find_matches([fingerprint(other_shape)], [fingerprint(flat[0])]) == []


def test_missing_values_do_not_matter_elsewhere() -> None:
    image = scene(2).astype(np.float32) + 5000  # a hole of zeros would stand out
    holed = image.copy()
    holed[10:14, 20:24] = np.nan
    (match,) = find_matches([fingerprint(holed)], [fingerprint(image)])
    assert match.similarity > 0.98
    nothing = np.full((8, 8), np.nan, np.float32)
    assert not fingerprint(nothing).spectrum_FF.any()


@pytest.mark.parametrize("shape", [(5,), (0, 4, 3), (2, 3, 4, 5)])
def test_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="an image has shape"):
        fingerprint(np.zeros(shape))


def test_refuses_a_similarity_that_is_no_cosine() -> None:
    with pytest.raises(ValueError, match=r"min_similarity must lie in \(0, 1\], got 1.5"):
        find_matches([], min_similarity=1.5)
