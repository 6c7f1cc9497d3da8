"""Cut an image into patches, and write them as TIFF files of their own depth.

Shapes: H, W height and width in pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from mmconvnextv2.datasets.domain_sets.domain import SourceImage


@dataclass(frozen=True)
class Patch:
    """A square of a source image."""

    source: SourceImage
    top: int
    left: int
    """Place in the original, in pixels."""

    image_HWC: np.ndarray
    semantic_HW: np.ndarray


def cut(source: SourceImage, patch_size: int, stride: int) -> Iterator[Patch]:
    """Cut a region into squares, row by row, from border to border.

    Args:
        source: The region; its sides are at least `patch_size`.
        patch_size: Side of a square, in pixels.
        stride: Greatest distance between neighbours; they are spread evenly, so it may be less.

    Yields:
        The patches. One without any contrast is left out: there is nothing to reconstruct in it.
    """
    height, width = source.semantic_HW.shape
    for top in _starts(height, patch_size, stride):
        for left in _starts(width, patch_size, stride):
            window = np.s_[top : top + patch_size, left : left + patch_size]
            image_HWC = source.image_HWC[window]
            if image_HWC.min() < image_HWC.max():
                yield Patch(source, top, source.left + left, image_HWC, source.semantic_HW[window])


def write_tiff(path: Path, image_HWC: np.ndarray) -> None:
    """Write pixels as they are, without a date, so that the same pixels give the same bytes.

    Args:
        path: The file.
        image_HWC: uint8, uint16 or float32, (H, W, C).
    """
    pixels = image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC
    tifffile.imwrite(
        path,
        np.ascontiguousarray(pixels),
        photometric="minisblack",
        planarconfig=None if pixels.ndim == 2 else "contig",
        compression="zlib",
        metadata=None,
        software=False,
    )


def _starts(length: int, patch_size: int, stride: int) -> list[int]:
    """Return first rows or columns of patches that cover a length evenly."""
    assert length >= patch_size, "a domain's regions are wider than its patches"
    room = length - patch_size
    count = 1 + -(-room // stride)
    return np.linspace(0, room, count).round().astype(int).tolist()
