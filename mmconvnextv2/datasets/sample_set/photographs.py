"""The photographs in scikit-image's and scikit-learn's wheels, each on one side of the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np
from PIL import Image

Side = Literal["train", "val"]


@dataclass(frozen=True)
class Photograph:
    """One file of an installed package, and the split that may show it."""

    name: str
    package: str
    file: str
    side: Side


_SKIMAGE = "skimage.data"
_SKLEARN = "sklearn.datasets.images"

# Files are read from the packages, not through skimage.data's functions: those go to the network
# for whatever a release does not ship. Left out: drawings, text, test patterns, faces of 25 px and
# pictures that are nearly empty. The two frames of the stereo pair show one scene: same side.
PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("astronaut", _SKIMAGE, "astronaut.png", "train"),
    Photograph("brick", _SKIMAGE, "brick.png", "train"),
    Photograph("chelsea", _SKIMAGE, "chelsea.png", "train"),
    Photograph("china", _SKLEARN, "china.jpg", "train"),
    Photograph("coins", _SKIMAGE, "coins.png", "train"),
    Photograph("grass", _SKIMAGE, "grass.png", "train"),
    Photograph("hubble_deep_field", _SKIMAGE, "hubble_deep_field.jpg", "train"),
    Photograph("immunohistochemistry", _SKIMAGE, "ihc.png", "train"),
    Photograph("moon", _SKIMAGE, "moon.png", "train"),
    Photograph("motorcycle_left", _SKIMAGE, "motorcycle_left.png", "train"),
    Photograph("motorcycle_right", _SKIMAGE, "motorcycle_right.png", "train"),
    Photograph("retina", _SKIMAGE, "retina.jpg", "train"),
    Photograph("camera", _SKIMAGE, "camera.png", "val"),
    Photograph("coffee", _SKIMAGE, "coffee.png", "val"),
    Photograph("flower", _SKLEARN, "flower.jpg", "val"),
    Photograph("gravel", _SKIMAGE, "gravel.png", "val"),
    Photograph("rocket", _SKIMAGE, "rocket.jpg", "val"),
)


def load_photographs(side: Side) -> dict[str, Image.Image]:
    """Load the photographs of one side of the split.

    Args:
        side: "train" or "val".

    Returns:
        Name to RGB image, in the order of `PHOTOGRAPHS`; greyscale is repeated to three channels.

    Raises:
        FileNotFoundError: If an installed package lacks one of the files.
    """
    loaded = {}
    for photograph in PHOTOGRAPHS:
        if photograph.side != side:
            continue
        file = resources.files(photograph.package) / photograph.file
        if not file.is_file():
            raise FileNotFoundError(
                f"the sample set needs {photograph.file} of {photograph.package}, which the "
                "installed release does not carry; install scikit-image >= 0.22 and scikit-learn"
            )
        with file.open("rb") as stream, Image.open(stream) as image:
            loaded[photograph.name] = image.convert("RGB")
    return loaded


def random_crop(
    rng: np.random.Generator, photographs: Mapping[str, Image.Image], size: int
) -> tuple[str, np.ndarray]:
    """Draw a photograph and a square of it, mirrored half of the time.

    Args:
        rng: Source of all draws.
        photographs: Name to RGB image.
        size: Height and width of the result, in pixels. The square is at least that large where the
            photograph is, and at most its short side.

    Returns:
        The photograph's name and the square as uint8 (size, size, 3), RGB.
    """
    name = list(photographs)[rng.integers(len(photographs))]
    photograph = photographs[name]
    short = min(photograph.size)
    side = int(rng.integers(min(size, short), short + 1))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    crop = photograph.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    pixels = np.asarray(crop)
    return name, pixels[:, ::-1] if rng.random() < 0.5 else pixels
