"""Images of a folder for an encoder: some of all, or some of each class, in batches.

Shape suffixes: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmconvnextv2.analysis.encoders import Encoder
from mmconvnextv2.datasets.image_reading import IMAGE_SUFFIXES, UnreadableImageError
from mmconvnextv2.datasets.image_scan import describe_bad, resolve_folder, scan_folder
from mmconvnextv2.datasets.raster_reading import RASTER_SUFFIXES


def choose_images(folder: str | os.PathLike[str], count: int, encoder: Encoder) -> list[str]:
    """Choose evenly spaced images of a folder and all below it.

    In a folder with a sub-folder for each class they come from as many classes as can be.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it has no image, or none is asked for.
    """
    if count < 1:
        raise ValueError(f"the number of images must be at least 1, got {count}")
    return _evenly_spaced(_list_images(folder, encoder), count)


def choose_labelled_images(
    folder: str | os.PathLike[str], per_class: int, encoder: Encoder
) -> tuple[list[str], list[int], list[str]]:
    """Choose evenly spaced images of each class, which is the first folder below the given one.

    Returns:
        Paths, the class of each from 0, and the names of the classes.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it has fewer than two sub-folders with images, or none is asked for.
    """
    if per_class < 1:
        raise ValueError(f"the number of images of a class must be at least 1, got {per_class}")
    root = resolve_folder(folder)
    by_class: dict[str, list[str]] = {}
    for path in _list_images(folder, encoder):
        parts = Path(path).relative_to(root).parts
        if len(parts) > 1:
            by_class.setdefault(parts[0], []).append(path)
    if len(by_class) < 2:
        raise ValueError(
            f"class selectivity needs a sub-folder of images for each of at least 2 classes; "
            f"{root} has {len(by_class)}"
        )
    chosen = {name: _evenly_spaced(paths, per_class) for name, paths in sorted(by_class.items())}
    labels = [label for label, paths in enumerate(chosen.values()) for _ in paths]
    return [path for paths in chosen.values() for path in paths], labels, list(chosen)


def _list_images(folder: str | os.PathLike[str], encoder: Encoder) -> list[str]:
    suffixes = IMAGE_SUFFIXES if encoder.load_raster is None else RASTER_SUFFIXES
    return list(scan_folder(resolve_folder(folder), suffixes).images)


def _evenly_spaced(paths: list[str], count: int) -> list[str]:
    indices = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[i] for i in indices]


class ImageBatches:
    """Batches of images for one encoder. What cannot be read is left out and remembered.

    Args:
        encoder: that shall get them.
        paths: the files.
        image_size: side in pixels.
        batch_size: images of a batch.
        num_workers: threads that read.

    Attributes:
        unreadable: reason by path, of what was read until now.

    Raises:
        ValueError: size, batch or number of threads is too small.
    """

    def __init__(
        self,
        encoder: Encoder,
        paths: Sequence[str],
        image_size: int = 224,
        batch_size: int = 32,
        num_workers: int = 4,
    ) -> None:
        if image_size < 32 or min(batch_size, num_workers) < 1:
            raise ValueError(
                "image_size must be at least 32, batch_size and num_workers at least 1, got "
                f"{image_size}, {batch_size} and {num_workers}"
            )
        self.encoder = encoder
        self.paths = paths
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.paths) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[list[int], Tensor]]:
        """Positions in `paths`, and the images ``(N, C, H, W)`` on the encoder's device.

        Raises:
            ValueError: no image at all can be read.
        """
        found = 0
        with ThreadPoolExecutor(self.num_workers) as pool:
            for start in range(0, len(self.paths), self.batch_size):
                positions = range(start, min(start + self.batch_size, len(self.paths)))
                images = zip(positions, pool.map(self._try_one, positions), strict=True)
                batch = [(position, x_CHW) for position, x_CHW in images if x_CHW is not None]
                found += len(batch)
                if batch:
                    x_NCHW = torch.stack([x_CHW for _, x_CHW in batch])
                    yield [position for position, _ in batch], x_NCHW.to(self.encoder.device)
        if found == 0:
            raise ValueError(f"no image can be read:\n{describe_bad(self.unreadable)}")

    def _try_one(self, position: int) -> Tensor | None:
        path = self.paths[position]
        try:
            return self.encoder.read(path, self.image_size)
        except UnreadableImageError as error:
            self.unreadable[path] = error.reason
            return None
