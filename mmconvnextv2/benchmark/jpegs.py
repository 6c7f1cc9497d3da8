"""JPEG files of ImageNet-like size, from a folder or from photographs that packages carry."""

from __future__ import annotations

import random
from pathlib import Path

from mmconvnextv2.benchmark.peers import LeftOut, import_peer

SIZES = ((500, 375), (500, 333), (375, 500), (500, 400))
"""Common sizes of ImageNet's photographs, width x height."""

SUFFIXES = {".jpg", ".jpeg"}

TARGET_BYTES = 110_000
"""Mean size of a file of ImageNet-1K's training set."""


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

    Each has one of the common sizes, and the quality whose file size comes nearest to ImageNet's
    mean.

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


def _save_near(image: object, path: Path, target: int) -> None:
    """Save at the lowest quality that reaches a file size, or at the highest there is."""
    for quality in range(75, 101, 5):
        image.save(path, quality=quality)  # type: ignore[attr-defined]
        if path.stat().st_size >= target:
            break
