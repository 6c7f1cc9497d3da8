"""JPEG files of ImageNet-like size, from a folder or from photographs that packages carry."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from mmconvnextv2.benchmark.peers import LeftOut, import_peer

SIZES = ((500, 375), (500, 333), (375, 500), (500, 400))
"""Common sizes of ImageNet's photographs, width x height."""

SUFFIXES = {".jpg", ".jpeg"}

TARGET_BYTES = 110_000
"""Mean size of a file of ImageNet-1K's training set."""

QUALITIES = (75, 85, 90, 93, 95, 96, 97, 98, 99, 100)


def find_jpegs(folder: Path, number: int, seed: int) -> list[Path]:
    """Choose JPEG files below a folder.

    Args:
        folder: where to look, at any depth.
        number: how many at most.
        seed: of the choice, which does not depend on the order of the file system.

    Raises:
        ValueError: there is none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no JPEG files ({', '.join(sorted(SUFFIXES))})")
    return sorted(random.Random(seed).sample(files, min(number, len(files))))


def make_jpegs(folder: Path, number: int, seed: int) -> list[Path]:
    """Cut JPEG files out of scikit-image's and scikit-learn's photographs.

    Each has one of the common sizes and colours at half the resolution (4:2:0), and the lowest
    quality that reaches ImageNet's mean file size: above 95 for most, since these photographs are
    soft. The time to decode a file goes by its bytes, and decoding is what all pipelines share, so
    smaller files would favour the faster pipeline.

    Args:
        folder: where to write them.
        number: how many.
        seed: of the cuts.

    Raises:
        LeftOut: Pillow or the photographs are missing.
    """
    photographs = import_peer("mmconvnextv2.datasets.sample_set.photographs")
    try:
        images = list(photographs.load_photographs("train").values())
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise LeftOut(f"no photographs to make JPEGs of: {error}") from error
    draw, files = random.Random(seed), []
    for i in range(number):
        image, size = draw.choice(images), draw.choice(SIZES)
        scale = draw.uniform(0.6, 1.0) * min(image.width / size[0], image.height / size[1])
        width, height = (scale * side for side in size)
        left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
        cut = image.resize(size, box=(left, top, left + width, top + height))
        files.append(folder / f"{i:04d}.jpg")
        _save_near(cut, files[-1], TARGET_BYTES)
    return files


def _save_near(cut: Any, path: Path, target: int) -> None:
    """Save at the lowest quality that reaches a file size, or at the highest there is."""
    for quality in QUALITIES:
        cut.save(path, quality=quality, subsampling="4:2:0")
        if path.stat().st_size >= target:
            break
