"""An image folder in two parts, one to train on and one held out, without any list of files."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mmengine.registry import DATASETS

from mmconvnextv2.datasets.image_folder import ImageFolder
from mmconvnextv2.datasets.image_scan import TooFewImagesError, resolve_folder
from mmconvnextv2.datasets.path_list import PathList

GroupBy = Literal["file", "folder"]
"""What is held out as a whole."""


def is_held_out(name: str, held_out_share: float, group_by: GroupBy = "file") -> bool:
    """Decide by a hash of its name, or of its folder's, whether an image is held out.

    Args:
        name: path of the image relative to the data's root, with slashes.
        held_out_share: share of all names to hold out, in (0, 1).
        group_by: what to hash, see `SplitImageFolder`.

    Returns:
        The same answer on every machine, whatever else the folder holds. A larger share keeps what
        a smaller one held out.
    """
    unit = name if group_by == "file" else PurePosixPath(name).parent.as_posix()
    digest = hashlib.blake2b(os.fsencode(unit), digest_size=8).digest()
    return int.from_bytes(digest, "big") < held_out_share * 2**64


@DATASETS.register_module()
class SplitImageFolder(ImageFolder):
    """`ImageFolder` that keeps the images of one of two parts.

    The part of an image follows from a hash of its path relative to `data_root`. So both parts can
    be built independently, in any process, and images that are added later leave the others where
    they are. The share is met on average: of 1,000 images and 0.05, some 36 to 64 are held out.

    Args:
        data_root: The folder.
        part: "train" or "held_out".
        held_out_share: Share of the images to hold out, strictly between 0 and 1.
        group_by: "file", or "folder" where the images of one folder are alike (slices of a volume,
            frames of a film, patches of a slide): whole folders are then held out.
        label_by_folder: Give each image the label of its sub-folder of `data_root` (of the split's
            folder where there is one), as `gt_label`; the names are `metainfo["classes"]`. Only
            figures such as the k-NN accuracy use it; nothing is trained on it.
        **image_folder: Further arguments of `ImageFolder`: split, pipeline, max_bad_share, ...

    Raises:
        ValueError: An argument is outside what is allowed, or an image has no sub-folder as label.
        TooFewImagesError: The part has no image.
        FileNotFoundError, NotADirectoryError, BadImagesError: As `ImageFolder`.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        part: Literal["train", "held_out"],
        held_out_share: float = 0.05,
        group_by: GroupBy = "file",
        label_by_folder: bool = False,
        **image_folder: Any,
    ) -> None:
        if part not in ("train", "held_out"):
            raise ValueError(f"part must be 'train' or 'held_out', got {part!r}")
        if not 0 < held_out_share < 1:
            raise ValueError(
                f"held_out_share must lie strictly between 0 and 1, got {held_out_share}"
            )
        if group_by not in ("file", "folder"):
            raise ValueError(f"group_by must be 'file' or 'folder', got {group_by!r}")
        self.part = part
        self.held_out_share = held_out_share
        self.group_by = group_by
        self.label_by_folder = label_by_folder
        super().__init__(data_root, **image_folder)

    def load_data_list(self) -> Sequence[Any]:
        """List the folder as `ImageFolder` does, and keep the images of this part.

        Returns:
            Their paths, in a fixed order.
        """
        self._folder = resolve_folder(self.data_root, self.split)
        images: Sequence[str] = super().load_data_list()
        if self.label_by_folder:
            self._metainfo["classes"] = self._find_classes(images)
        kept = PathList(path for path in images if self._is_in_part(path))
        if not kept:
            unit = "images" if self.group_by == "file" else "folders"
            raise TooFewImagesError(
                f"part={self.part!r} of {self.data_root} is empty: held_out_share="
                f"{self.held_out_share} of {len(images):,} images, by {self.group_by}, leaves it "
                f"nothing. Change the share, or use a folder with more {unit}"
            )
        return kept

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return `img_path` and `sample_idx`, and `gt_label` where that is asked for."""
        info = super().get_data_info(idx)
        if self.label_by_folder:
            name = self._parts_of(info["img_path"])[0]
            info["gt_label"] = bisect_left(self._metainfo["classes"], name)
        return info

    def _is_in_part(self, path: str) -> bool:
        root = Path(self.data_root).expanduser()
        name = Path(os.path.relpath(path, root)).as_posix()
        return is_held_out(name, self.held_out_share, self.group_by) == (self.part == "held_out")

    def _find_classes(self, images: Sequence[str]) -> list[str]:
        # Over both parts, so that a class has the same number in each.
        parts = [self._parts_of(path) for path in images]
        loose = [os.path.join(*names) for names in parts if len(names) == 1]
        if loose:
            raise ValueError(
                "label_by_folder needs every image in a sub-folder of "
                f"{self._folder} that names its class, and "
                f"{len(loose):,} are not, {loose[0]} for example: move them, or set "
                "label_by_folder=False"
            )
        return sorted({names[0] for names in parts})

    def _parts_of(self, path: str) -> tuple[str, ...]:
        return Path(os.path.relpath(path, self._folder)).parts
