"""scikit-learn's handwritten digits: the split by writer, and how one is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mmconvnextv2.datasets.sample_set.photographs import Side

# The samples are stored writer by writer: each block starts again with 0 1 2 ... 9, thrice. One
# block starts at 1415: a cut there (79 % / 21 %) keeps every writer on one side, not only samples.
FIRST_VAL_SAMPLE = 1415

# Ink, 0 to 1, that becomes transparent and opaque; between the two lies the soft edge.
_INK_TRANSPARENT = 0.25
_INK_OPAQUE = 0.6

# Empty border around the 8x8 bitmap, in its own pixels: strokes that touch the border fade out too.
_PADDING = 2


@dataclass(frozen=True)
class DigitSample:
    """One handwritten digit."""

    index: int
    """Its place in scikit-learn's 1,797 samples."""

    label: int
    """The digit, 0 to 9."""

    ink: np.ndarray
    """Ink per pixel, float32 (8, 8), 0 to 1."""


def load_digit_samples(side: Side) -> tuple[DigitSample, ...]:
    """Load the handwritten digits of one side of the split, in scikit-learn's order.

    Args:
        side: "train" (samples 0 to 1414) or "val" (1415 to 1796).

    Returns:
        The samples.
    """
    data = load_digits()
    stop = len(data.target)
    indices = range(FIRST_VAL_SAMPLE) if side == "train" else range(FIRST_VAL_SAMPLE, stop)
    return tuple(
        DigitSample(i, int(data.target[i]), (data.images[i] / 16).astype(np.float32))
        for i in indices
    )


def render_digit(ink: np.ndarray, size: int, angle: float) -> np.ndarray:
    """Enlarge a digit (bicubic), turn it and soften its edge.

    Args:
        ink: Ink per pixel, float32 (8, 8), 0 to 1.
        size: Side of the enlarged bitmap, in pixels.
        angle: Turn in degrees, counter-clockwise.

    Returns:
        Opacity, float32 (h, w), 0 to 1, cropped to where it is not zero.
    """
    padded = np.pad(ink, _PADDING)
    side = round(size * padded.shape[0] / ink.shape[0])
    enlarged = Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC)
    turned = np.asarray(enlarged.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    opacity = np.clip((turned - _INK_TRANSPARENT) / (_INK_OPAQUE - _INK_TRANSPARENT), 0, 1)
    rows = np.flatnonzero(opacity.any(axis=1))
    columns = np.flatnonzero(opacity.any(axis=0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
