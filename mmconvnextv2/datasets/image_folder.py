"""A dataset of any folder of images that names, counts and survives unreadable files."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmconvnextv2.datasets.image_reading import IMAGE_SUFFIXES, UnreadableImageError, check_header
from mmconvnextv2.datasets.image_scan import (
    FolderScan,
    choose_headers,
    count_suffixes,
    describe_bad,
    describe_mixture,
    find_bad_headers,
    resolve_folder,
    scan_folder,
)
from mmconvnextv2.datasets.raster_reading import RASTER_SUFFIXES
from mmconvnextv2.datasets.raster_transforms import LoadRaster


class BadImagesError(RuntimeError):
    """Too many images of a folder cannot be read; the message lists the first of them."""


def allowed_bad(max_bad_share: float, count: int) -> int:
    """Return how many of `count` files may be bad.

    That is the share of them, rounded down, but at least one where any share is allowed, so that
    a single broken file never stops the work on a small folder.

    Args:
        max_bad_share: In [0, 1]; 0 allows none.
        count: Number of files.

    Returns:
        For 0.01: 1 of 30, 1 of 199, 2 of 200, 20 of 2,000.
    """
    if max_bad_share == 0:
        return 0
    # The small term keeps products such as 0.29 * 100 from falling below the whole number.
    return max(1, math.floor(max_bad_share * count + 1e-9))


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """All images below a folder: nested or flat, of any kind that the pipeline reads, no labels.

    What cannot be read is counted, named and left out:

    - At the start the headers of all files (of 2,000 evenly spaced ones where there are more than
      10,000) are checked. The bad ones are reported and dropped from the list; with more than
      `allowed_bad(max_bad_share, number checked)` of them the dataset refuses to be built. A
      sub-folder that may not be listed counts as one bad file.
    - A file that turns out unreadable later, because its body is broken or it has vanished, is
      reported once for all loader processes, and replaced by the next one in the list that can be
      read, so the replacement depends on the index alone. Training stops when the loader processes
      together have met more bad files than the share allows of the whole folder or, by three
      standard deviations and more than five, one process more than the share allows of what it
      has tried itself. In test mode nothing is replaced: the error is raised.

    The processes of a distributed run, each with its own loaders, know nothing of each other: each
    counts and reports what its own loaders meet.

    Only errors of reading are treated so: the pipeline has to load with `LoadRandomResizedCrop`,
    `LoadImage` or `LoadRaster`.

    With `LoadRaster` .npy files count as images, and a file of another number of channels than it
    asks for, or of another number type than its `dtype`, counts as unreadable. Where it asks for
    no type, the files checked must share one: the same value would mean different things. Images
    of different sizes are welcome, since crops bring them to one.

    Args:
        data_root: The folder.
        split: None reads the whole folder. "train", for example, reads data_root/train or the
            place of that split in the official ImageNet layouts.
        pipeline: Transforms, as configs or callables.
        max_bad_share: Largest share of unreadable files, in [0, 1].
        indices: Keep only the first n images (an int) or these positions of the list.
        test_mode: Whether the data is for evaluation.
        lazy_init: Whether to leave reading the folder for later.

    Raises:
        FileNotFoundError: The folder or the split does not exist.
        NotADirectoryError: `data_root` is a file.
        ValueError: No image in the folder, or `max_bad_share` is outside [0, 1].
        BadImagesError: Too many images are unreadable, or rasters are of different number types.
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
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share must be in [0, 1], got {max_bad_share}")
        self.split = split
        self.max_bad_share = max_bad_share
        self._bad: dict[str, str] = {}
        self._num_bad_at_start = 0
        self._num_files = 0
        self._num_tried = 0
        self._met: set[str] = set()
        super().__init__(
            data_root=os.fspath(data_root),
            pipeline=list(pipeline),
            indices=indices,
            serialize_data=False,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    def full_init(self) -> None:
        """Read the folder, unless that has been done."""
        if self._fully_initialized:
            return
        super().full_init()
        # Shared with the loader processes, also those of the next epochs: what has been reported.
        self._reported = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def load_data_list(self) -> Sequence[Any]:
        """List the folder, check headers, drop bad files and report.

        Returns:
            The paths, in a fixed order. They are not pickled one by one, as mmengine would do it:
            forked workers share them as they are.
        """
        folder = resolve_folder(self.data_root, self.split)
        loader = self._raster_loader()
        scan = scan_folder(folder, IMAGE_SUFFIXES if loader is None else RASTER_SUFFIXES)
        chosen = choose_headers(scan.images)
        self._num_files = len(scan.images)
        self._bad = {**scan.unlistable, **self._check_headers(chosen, loader)}
        self._num_bad_at_start = len(self._bad)
        images = scan.images.without(self._bad) if self._bad else scan.images
        self._refuse_if_too_many_bad(len(self._bad), len(chosen), "checked")
        if not images:
            raise BadImagesError(f"no readable image in {folder}:\n{describe_bad(self._bad)}")
        self._report(os.fspath(folder), images, scan, len(chosen))
        return images

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return what is known of an image without reading it: `img_path` and `sample_idx`."""
        self.full_init()
        return {"img_path": self.data_list[idx], "sample_idx": idx % len(self)}

    def _raster_loader(self) -> LoadRaster | None:
        steps = self.pipeline.transforms
        return next((step for step in steps if isinstance(step, LoadRaster)), None)

    def _check_headers(self, paths: list[str], loader: LoadRaster | None) -> dict[str, str]:
        """Return the reason by path for what cannot be used; refuse rasters of mixed types."""
        if loader is None:
            return find_bad_headers(paths, check_header)
        types: dict[str, str] = {}

        def check(path: str) -> None:
            types[path] = loader.check_header(path).dtype

        bad = find_bad_headers(paths, check)
        if len(set(types.values())) > 1:
            raise BadImagesError(
                f"the images in {self.data_root} are of different number types, so their values "
                f"are on different scales: {describe_mixture(types)}. Convert them, keep them in "
                "folders of their own, or name the type to use as LoadRaster(dtype=...)"
            )
        return bad

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on one image, or on the next readable one.

        Args:
            idx: Position in the list.

        Returns:
            What the pipeline returns.

        Raises:
            BadImagesError: Too many unreadable files have been met.
            UnreadableImageError: The file cannot be read, in test mode.
        """
        self._num_tried += 1
        for step in range(len(self)):
            # A negative position and one beyond the end are the list's to interpret or refuse.
            info = self.get_data_info(idx if step == 0 else (idx + step) % len(self))
            try:
                return self.pipeline(info)
            except UnreadableImageError as error:
                if self.test_mode:
                    raise
                self._bad[error.path] = error.reason
                # A replacement that is bad as well is counted when its own turn comes, which is in
                # one process alone.
                if step == 0:
                    self._note_bad(idx % len(self), error)
        raise BadImagesError(f"no readable image in {self.data_root}:\n{describe_bad(self._bad)}")

    def _note_bad(self, position: int, error: UnreadableImageError) -> None:
        self._met.add(error.path)
        if not self._reported[position]:
            self._reported[position] = True
            print_log(f"{error}; the next image replaces it", "current", logging.WARNING)
        num_bad = self._num_bad_at_start + int(self._reported.sum())
        self._refuse_if_too_many_bad(num_bad, self._num_files, "in the folder")
        # Each loader process meets its own part of the folder, so it also judges by that part.
        tried = min(self._num_tried, self._num_files)
        expected = self.max_bad_share * tried
        allowed = max(5, math.floor(expected + 3 * math.sqrt(expected)))
        if len(self._met) > allowed:
            self._refuse(len(self._met), f"{tried:,} read by this process", allowed)

    def _refuse_if_too_many_bad(self, num_bad: int, count: int, where: str) -> None:
        allowed = allowed_bad(self.max_bad_share, count)
        if num_bad > allowed:
            self._refuse(num_bad, f"{count:,} {where}", allowed)

    def _refuse(self, num_bad: int, count_in_words: str, allowed: int) -> NoReturn:
        raise BadImagesError(
            f"unreadable images: {num_bad:,} of {count_in_words}, in {self.data_root}; "
            f"max_bad_share={self.max_bad_share} allows {allowed:,}. Repair or remove them, "
            f"or raise max_bad_share:\n{describe_bad(self._bad, num_bad)}"
        )

    def _report(
        self, folder: str, images: Sequence[str], scan: FolderScan, num_checked: int
    ) -> None:
        others = sum(scan.others.values())
        print_log(
            f"{folder}: {len(images):,} images ({count_suffixes(images)}); "
            f"{num_checked:,} headers checked, {len(self._bad):,} bad; {others:,} other files",
            "current",
        )
        if self._bad:
            print_log(f"left out:\n{describe_bad(self._bad)}", "current", logging.WARNING)
