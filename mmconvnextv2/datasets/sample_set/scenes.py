"""Compose one image: bright digits on a dimmed photograph, each with its exact visible mask.

Shapes: H = W = the spec's image size, in pixels. Colours are RGB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmconvnextv2.datasets.sample_set.digits import DigitSample, render_digit
from mmconvnextv2.datasets.sample_set.photographs import random_crop
from mmconvnextv2.datasets.sample_set.specs import SceneSpec

MAX_TURN = 20.0
"""Greatest turn of a digit to either side, in degrees."""

MAX_HIDDEN = 0.3
"""Greatest share of a digit's pixels that later digits may hide."""

UNLABELLED, BACKGROUND, FIRST_DIGIT = 0, 1, 2
"""Values of the semantic map, as ADE20K has them: digit d is FIRST_DIGIT + d."""

_COLOUR_RANGE = (160, 255)
_PLACE_ATTEMPTS = 30
_SCENE_ATTEMPTS = 30


@dataclass(frozen=True)
class PlacedDigit:
    """A digit in a scene."""

    sample: DigitSample
    mask_HW: np.ndarray
    """Its visible part: bool (H, W), where it is at least half opaque and no later digit is."""


@dataclass(frozen=True)
class Scene:
    """One composed image with everything known about it."""

    image_HWC: np.ndarray
    """uint8 (H, W, 3), RGB."""

    semantic_HW: np.ndarray
    """uint8 (H, W): 1 = photograph, 2 + d = digit d, 0 = a soft edge, neither one nor the other."""

    photograph: str
    """Name of the photograph behind the digits."""

    digits: tuple[PlacedDigit, ...]
    """From the lowest to the topmost."""


@dataclass(frozen=True)
class _Stamp:
    """A rendered digit with its place: rows and columns it covers, and its opacity there."""

    sample: DigitSample
    window: tuple[slice, slice]
    opacity: np.ndarray


def compose_scene(
    rng: np.random.Generator,
    spec: SceneSpec,
    photographs: Mapping[str, Image.Image],
    samples: Sequence[DigitSample],
) -> Scene:
    """Draw one scene.

    Every digit lies inside the image, and of each at least 70 % of the pixels stay visible. The
    greatest number of digits is drawn only where there is room for it; the least is guaranteed.

    Args:
        rng: Source of all draws.
        spec: What to draw.
        photographs: Name to RGB image, to draw the background from.
        samples: Handwritten digits, to draw from with replacement.

    Returns:
        The scene.

    Raises:
        ValueError: If the least number of digits does not fit into the image.
    """
    photograph, crop_HWC = random_crop(rng, photographs, spec.image_size)
    stamps, masks = _place_digits(rng, spec, samples)
    canvas_HWC = crop_HWC.astype(np.float32) * spec.brightness
    semantic_HW = np.full(crop_HWC.shape[:2], BACKGROUND, dtype=np.uint8)
    for stamp in stamps:
        colour = rng.integers(_COLOUR_RANGE[0], _COLOUR_RANGE[1] + 1, size=3)
        opacity = stamp.opacity[..., None]
        canvas_HWC[stamp.window] = canvas_HWC[stamp.window] * (1 - opacity) + colour * opacity
        labels = semantic_HW[stamp.window]
        labels[stamp.opacity > 0.25] = UNLABELLED
        labels[stamp.opacity > 0.75] = FIRST_DIGIT + stamp.sample.label
    return Scene(
        image_HWC=np.rint(canvas_HWC).clip(0, 255).astype(np.uint8),
        semantic_HW=semantic_HW,
        photograph=photograph,
        digits=tuple(PlacedDigit(s.sample, mask) for s, mask in zip(stamps, masks, strict=True)),
    )


def _place_digits(
    rng: np.random.Generator, spec: SceneSpec, samples: Sequence[DigitSample]
) -> tuple[list[_Stamp], list[np.ndarray]]:
    """Place digits one above the other; return them with their visible masks."""
    low, high = spec.digits_per_image
    for _ in range(_SCENE_ATTEMPTS):
        wanted = rng.integers(low, high + 1)
        stamps: list[_Stamp] = []
        masks: list[np.ndarray] = []
        areas: list[int] = []
        for _ in range(_PLACE_ATTEMPTS):
            if len(stamps) == wanted:
                break
            stamp = _random_stamp(rng, spec, samples)
            if stamp is None:
                continue
            mask_HW = np.zeros((spec.image_size, spec.image_size), dtype=bool)
            mask_HW[stamp.window] = stamp.opacity >= 0.5
            visible = [mask & ~mask_HW for mask in masks]
            if any(
                v.sum() < (1 - MAX_HIDDEN) * area for v, area in zip(visible, areas, strict=True)
            ):
                continue
            stamps.append(stamp)
            masks = [*visible, mask_HW]
            areas.append(int(mask_HW.sum()))
        if len(stamps) >= low:
            return stamps, masks
    raise ValueError(
        f"{low} digits of {spec.digit_size[0]} to {spec.digit_size[1]} px do not fit into "
        f"{spec.image_size} px; lower digits_per_image or digit_size, or raise image_size"
    )


def _random_stamp(
    rng: np.random.Generator, spec: SceneSpec, samples: Sequence[DigitSample]
) -> _Stamp | None:
    """Draw a digit, its size, turn and place; None if it is larger than the image once turned."""
    sample = samples[int(rng.integers(len(samples)))]
    size = int(rng.integers(spec.digit_size[0], spec.digit_size[1] + 1))
    opacity = render_digit(sample.ink, size, rng.uniform(-MAX_TURN, MAX_TURN))
    height, width = opacity.shape
    if max(height, width) > spec.image_size:
        return None
    top = int(rng.integers(spec.image_size - height + 1))
    left = int(rng.integers(spec.image_size - width + 1))
    return _Stamp(sample, (slice(top, top + height), slice(left, left + width)), opacity)
