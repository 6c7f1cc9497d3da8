"""A dataset of images in tar shards, read at random places and with the same care as a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmconvnextv2.datasets.image_folder import ImageFolder
from mmconvnextv2.datasets.image_reading import UnreadableImageError, open_image
from mmconvnextv2.datasets.image_scan import describe_bad, resolve_folder
from mmconvnextv2.datasets.raster_transforms import LoadRaster
from mmconvnextv2.datasets.shard_index import Shards, read_packed

_CHECKED = 200
_CHECK_THREADS = 8


@DATASETS.register_module()
class ShardedImages(ImageFolder):
    """All images of a folder of tar shards in WebDataset's layout, without labels.

    `tools/dataset_converters/pack_shards.py` packs a folder of images into shards, and indexes
    shards of other origin. The index says where each image lies, so a dataset of shards is what a
    folder is: it has a length, and any image can be read at any time. Order, split over ranks and
    workers, augmentation and resume are those of `StatelessSampler` and `StatelessDataset`, and
    for the same images in the same order a run on shards is the run on the folder. The index takes
    16 bytes an image, which loader processes that are forked share.

    Every image is compared with its CRC-32 as it is read. What is unreadable is counted, named
    ("shard.tar:name") and replaced by the next image, as `ImageFolder` does it; at the start 200
    evenly spaced images are looked at.

    Shards may be links to other disks. They are only read, and have to stay as they are.

    Args:
        data_root: The folder of shards, with their `shards.json`.
        split: None, or the name of the sub-folder to read, such as "train".
        pipeline: Transforms, as configs or callables, that load with `LoadRandomResizedCrop` or
            `LoadImage`.
        max_bad_share: Largest share of unreadable images, in [0, 1].
        indices: Keep only the first n images (an int) or these positions of the list.
        test_mode: Whether the data is for evaluation.
        lazy_init: Whether to leave reading the index for later.

    Raises:
        FileNotFoundError: The folder or the split does not exist.
        ShardError: Shards are missing, changed or not indexed.
        ValueError: `max_bad_share` is outside [0, 1], or the pipeline has `LoadRaster`.
        BadImagesError: Too many images are unreadable.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str | None = None,
        pipeline: Sequence[dict[str, Any] | Callable] = (),
        max_bad_share: float = 0.01,
        indices: int | Sequence[int] | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        super().__init__(
            data_root,
            split=split,
            pipeline=[read_packed, *pipeline],
            max_bad_share=max_bad_share,
            indices=indices,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    def load_data_list(self) -> Shards:
        """Read the index, look at some images and report.

        Returns:
            Where each image is, in a fixed order.
        """
        if any(isinstance(step, LoadRaster) for step in self.pipeline.transforms):
            raise ValueError(
                "ShardedImages reads images of 8 bits, and LoadRaster reads files alone: use "
                "LoadRandomResizedCrop or LoadImage, or ImageFolder with LoadRaster"
            )
        folder = resolve_folder(self.data_root, self.split)
        shards = Shards(folder)
        self._num_files = len(shards)
        checked = min(_CHECKED, len(shards))
        positions = [number * len(shards) // checked for number in range(checked)]
        with ThreadPoolExecutor(_CHECK_THREADS) as pool:
            faults = list(pool.map(_fault, [shards[position] for position in positions]))
        # They stay in the list, and count when they are met: the index is not worth a copy.
        self._bad = {fault.path: fault.reason for fault in faults if fault is not None}
        self._refuse_if_too_many_bad(len(self._bad), checked, "checked")
        print_log(
            f"{folder}: {len(shards):,} images in {len(shards.paths):,} shards; {checked:,} "
            f"checked, {len(self._bad):,} bad",
            "current",
        )
        if self._bad:
            print_log(f"to be replaced:\n{describe_bad(self._bad)}", "current", logging.WARNING)
        return shards

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return where an image is, and `sample_idx`: its name stands in the shard."""
        self.full_init()
        return {**self.data_list[idx], "sample_idx": idx % len(self)}


def _fault(place: dict[str, Any]) -> UnreadableImageError | None:
    try:
        packed = read_packed(place)
        with open_image(packed["img_path"], packed["img_bytes"]):
            return None
    except UnreadableImageError as error:
        return error
