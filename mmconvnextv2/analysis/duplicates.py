"""Exact and near duplicates among images of any bit depth and number of channels.

An image is remembered by two things: a digest of its pixels, which exact copies share, and the low
frequencies of its picture (a perceptual hash that keeps its real values), which copies share that
were scaled, compressed, brightened, mirrored or turned. The comparison is one matrix product a
chunk: exact, and a minute for 100,000 images against 10,000.

Shape suffixes: H and W pixels, C channels, S side of the small picture, F frequencies, Q queries,
R references.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

SIDE = 32
"""Pixels of the small picture that is compared."""

FREQUENCIES = 12
"""Rows and columns of its cosine transform that count."""

ORIENTATIONS = (
    "as it is",
    "mirrored left to right",
    "mirrored top to bottom",
    "turned by 180 degrees",
    "mirrored along the diagonal",
    "turned by 90 degrees to the left",
    "turned by 90 degrees to the right",
    "mirrored along the other diagonal",
)
"""What has to be done to a reference to make it look like the query."""


@dataclass(frozen=True)
class Fingerprint:
    """What is remembered of an image.

    Attributes:
        digest: of shape, data type and pixels.
        spectrum_FF: float32, low frequencies without the constant, of length 1 and with the weight
            of a frequency in proportion to it; zeros for an image without any contrast.
    """

    digest: bytes
    spectrum_FF: NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """A query and the reference that is most like it.

    Attributes:
        query: position among the queries.
        reference: position among the references.
        similarity: cosine of the two spectra, 1 at most.
        exact: whether the pixels are the same.
        orientation: one of `ORIENTATIONS`.
    """

    query: int
    reference: int
    similarity: float
    exact: bool
    orientation: str


def fingerprint(image: NDArray) -> Fingerprint:
    """Reduce an image to what duplicates share.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, integers or floats of any range. Values that are not
            finite count as missing: they get the mean of the others.

    Raises:
        ValueError: the array has another number of axes, or no pixel.
    """
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"an image has shape (H, W) or (H, W, C), got {image.shape}")
    header = f"{image.shape} {image.dtype.str}".encode()
    digest = hashlib.sha256(header + np.ascontiguousarray(image).tobytes()).digest()
    return Fingerprint(digest, _spectrum(image))


def _spectrum(image: NDArray) -> NDArray[np.float32]:
    values_HWC = image.astype(np.float64).reshape(*image.shape[:2], -1)
    finite = np.isfinite(values_HWC)
    if not finite.all():
        values_HWC = np.where(finite, values_HWC, values_HWC[finite].mean() if finite.any() else 0)
    grey_HW = values_HWC.mean(axis=2)
    grey_HW = grey_HW - grey_HW.mean()
    contrast = np.abs(grey_HW).max()
    if contrast <= 1e-9 * np.abs(values_HWC).max():
        return np.zeros((FREQUENCIES, FREQUENCIES), np.float32)
    # Pillow averages over all pixels that fall into a small one, in single precision.
    picture = Image.fromarray((grey_HW / contrast).astype(np.float32))
    small_SS = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    spectrum_FF = dctn(small_SS, norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    # Pictures of all kinds have amplitudes that fall as 1 / frequency: this evens them out, and
    # leaves no weight to the constant.
    spectrum_FF = spectrum_FF * np.hypot(*np.indices(spectrum_FF.shape))
    return (spectrum_FF / max(np.linalg.norm(spectrum_FF), 1e-12)).astype(np.float32)


def find_matches(
    queries: Sequence[Fingerprint],
    references: Sequence[Fingerprint] | None = None,
    *,
    min_similarity: float = 0.95,
    chunk_size: int = 1024,
) -> list[Match]:
    """Find for each query the reference that it is a copy of.

    Args:
        queries: the images to judge, such as the held-out ones.
        references: the images to compare with. None searches the queries among themselves: each
            is compared with those before it, so that without the matches' queries no two of the
            rest are duplicates.
        min_similarity: cosine from which two images count as near duplicates, in (0, 1].
        chunk_size: queries to compare at once; memory holds chunk_size x references values.

    Returns:
        At most one match for each query, in their order: an exact one where there is one.

    Raises:
        ValueError: `min_similarity` is outside of (0, 1].
    """
    if not 0 < min_similarity <= 1:
        raise ValueError(f"min_similarity must lie in (0, 1], got {min_similarity}")
    among_themselves = references is None
    known = queries if references is None else references
    if not queries or not known:
        return []
    exact = _exact_matches(queries, None if among_themselves else known)
    known_RF = _flatten([one.spectrum_FF for one in known])
    matches = []
    for start in range(0, len(queries), chunk_size):
        chunk = queries[start : start + chunk_size]
        best_Q, reference_Q, way_Q = _most_similar(
            chunk, known_RF, np.arange(start, start + len(chunk)) if among_themselves else None
        )
        for i in range(len(chunk)):
            query = start + i
            if query in exact:
                matches.append(Match(query, exact[query], 1.0, True, ORIENTATIONS[0]))
            # Single precision leaves a copy at 1 to about 1e-6.
            elif best_Q[i] >= min_similarity - 1e-5:
                similarity = min(1.0, float(best_Q[i]))
                orientation = ORIENTATIONS[way_Q[i]]
                matches.append(Match(query, int(reference_Q[i]), similarity, False, orientation))
    return matches


def _exact_matches(
    queries: Sequence[Fingerprint], references: Sequence[Fingerprint] | None
) -> dict[int, int]:
    """First reference of the same digest by query; without references, first earlier query."""
    first: dict[bytes, int] = {}
    for i, one in enumerate(queries if references is None else references):
        first.setdefault(one.digest, i)
    found = {i: first[one.digest] for i, one in enumerate(queries) if one.digest in first}
    return {i: j for i, j in found.items() if references is not None or j < i}


def _most_similar(
    queries: Sequence[Fingerprint], known_RF: NDArray, positions_Q: NDArray | None
) -> tuple[NDArray, NDArray, NDArray]:
    """Highest cosine, its reference and the orientation, for each query.

    With positions, a query is compared with the references before its own position alone.
    """
    known_RF = known_RF if positions_Q is None else known_RF[: positions_Q[-1] + 1]
    best_Q = np.full(len(queries), -1.0)
    reference_Q = np.zeros(len(queries), int)
    way_Q = np.zeros(len(queries), int)
    variants = zip(*(_orientations(one.spectrum_FF) for one in queries), strict=True)
    for way, spectra in enumerate(variants):
        cosine_QR = _flatten(spectra) @ known_RF.T
        if positions_Q is not None:
            cosine_QR[np.arange(known_RF.shape[0])[None] >= positions_Q[:, None]] = -1.0
        candidate_Q = cosine_QR.argmax(axis=1)
        value_Q = cosine_QR[np.arange(len(queries)), candidate_Q]
        better_Q = value_Q > best_Q + 1e-6  # an image that is its own mirror image is as it is
        best_Q[better_Q] = value_Q[better_Q]
        reference_Q[better_Q] = candidate_Q[better_Q]
        way_Q[better_Q] = way
    return best_Q, reference_Q, way_Q


def _orientations(spectrum_FF: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Spectra of the picture in the order of `ORIENTATIONS`.

    To mirror a picture is to change the sign of its odd frequencies along that axis, and to mirror
    it along the diagonal is to transpose its spectrum.
    """
    sign = (-1.0) ** np.arange(FREQUENCIES, dtype=np.float32)
    variants = []
    for base_FF in (spectrum_FF, spectrum_FF.T):
        left_right, top_bottom = base_FF * sign, base_FF * sign[:, None]
        variants += [base_FF, left_right, top_bottom, left_right * sign[:, None]]
    return variants


def _flatten(spectra: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(spectra).reshape(len(spectra), -1)
