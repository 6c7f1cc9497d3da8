"""Transforms that load images: a random crop of one, as pre-training does, or a whole one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmpretrain.datasets.transforms import RandomResizedCrop

from mmconvnextv2.datasets.crop_reading import read_crop, upright_size
from mmconvnextv2.datasets.image_reading import open_image, read_image


@TRANSFORMS.register_module()
class LoadRandomResizedCrop(RandomResizedCrop):
    """Draw a random crop of an image file, then decode and resize that: antialiased, bicubic.

    It stands for `LoadImage` and mmpretrain's `RandomResizedCrop` with `backend="pillow"` and
    `interpolation="bicubic"`, and draws the same crops. Knowing the crop before decoding, it takes
    less time than they do; `read_crop` says by how little the pixels differ.

    Required keys: `img_path`; where `img_bytes` is there, it is the content of the file and
    `img_path` only names it. Added keys: `img` (uint8; (H, W, 3) in B, G, R order as all of
    OpenMMLab has it, or (H, W) for grey), `ori_shape` (H, W) of the file and `img_shape` (H, W)
    of the result.

    Args:
        scale: Output size in pixels: (height, width), or the side of a square.
        crop_ratio_range: Range of the crop's share of the image's area.
        aspect_ratio_range: Range of the crop's width / height, drawn uniformly in its logarithm.
        max_attempts: Draws before the largest central crop within that range is taken.
        color_type: "color" or "grayscale".

    Raises:
        ValueError: A range is the wrong way round, or `color_type` is something else.
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: tuple[float, float] = (0.08, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
        color_type: Literal["color", "grayscale"] = "color",
    ) -> None:
        super().__init__(
            scale, crop_ratio_range, aspect_ratio_range, max_attempts, "bicubic", "pillow"
        )
        self.color_type = _checked(color_type)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the crop to the results.

        Args:
            results: A dict with `img_path`.

        Returns:
            The same dict with the keys named above.

        Raises:
            UnreadableImageError: The file cannot be read.
        """
        with open_image(results["img_path"], results.get("img_bytes")) as image:
            width, height = upright_size(image)
            # The parent asks for an image, of which it needs the shape alone.
            shape_only = np.broadcast_to(np.uint8(0), (height, width))
            top, left, crop_height, crop_width = self.rand_crop_params(shape_only)
            results["img"] = read_crop(
                image,
                box=(left, top, left + crop_width, top + crop_height),
                size=(self.scale[1], self.scale[0]),
                mode="L" if self.color_type == "grayscale" else "BGR",
            )
        results["ori_shape"] = (height, width)
        results["img_shape"] = results["img"].shape[:2]
        return results

    def __repr__(self) -> str:
        """Show the settings."""
        return (
            f"{type(self).__name__}(scale={self.scale}, crop_ratio_range={self.crop_ratio_range}, "
            f"aspect_ratio_range={self.aspect_ratio_range}, max_attempts={self.max_attempts}, "
            f"color_type={self.color_type!r})"
        )


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image file of any kind with `read_image`, which states how each kind is read.

    Required keys: `img_path`; where `img_bytes` is there, it is the content of the file and
    `img_path` only names it. Added keys: `img` (uint8; (H, W, 3) in B, G, R order as all of
    OpenMMLab has it, or (H, W) for grey), `img_shape` and `ori_shape` (H, W).

    Args:
        color_type: "color" or "grayscale".

    Raises:
        ValueError: `color_type` is something else.
    """

    def __init__(self, color_type: Literal["color", "grayscale"] = "color") -> None:
        self.color_type = _checked(color_type)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the image to the results.

        Args:
            results: A dict with `img_path`.

        Returns:
            The same dict with the keys named above.

        Raises:
            UnreadableImageError: The file cannot be read.
        """
        if self.color_type == "grayscale":
            img = read_image(results["img_path"], "L", results.get("img_bytes"))
        else:
            pixels = read_image(results["img_path"], "RGB", results.get("img_bytes"))
            img = np.ascontiguousarray(pixels[..., ::-1])
        results["img"] = img
        results["img_shape"] = results["ori_shape"] = img.shape[:2]
        return results

    def __repr__(self) -> str:
        """Show the settings."""
        return f"{type(self).__name__}(color_type={self.color_type!r})"


def _checked(color_type: Literal["color", "grayscale"]) -> Literal["color", "grayscale"]:
    if color_type not in ("color", "grayscale"):
        raise ValueError(f"color_type must be 'color' or 'grayscale', got {color_type!r}")
    return color_type
