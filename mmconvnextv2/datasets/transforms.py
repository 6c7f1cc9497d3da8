"""The loading transform of the pre-training pipeline."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from mmconvnextv2.datasets.image_reading import read_image


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image file of any kind with `read_image`, which states how each kind is read.

    Required keys: `img_path`. Added keys: `img` (uint8; (H, W, 3) in B, G, R order as all of
    OpenMMLab has it, or (H, W) for grey), `img_shape` and `ori_shape` (H, W).

    Args:
        color_type: "color" or "grayscale".

    Raises:
        ValueError: `color_type` is something else.
    """

    def __init__(self, color_type: Literal["color", "grayscale"] = "color") -> None:
        if color_type not in ("color", "grayscale"):
            raise ValueError(f"color_type must be 'color' or 'grayscale', got {color_type!r}")
        self.color_type = color_type

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
            img = read_image(results["img_path"], mode="L")
        else:
            img = np.ascontiguousarray(read_image(results["img_path"])[..., ::-1])
        results["img"] = img
        results["img_shape"] = results["ori_shape"] = img.shape[:2]
        return results

    def __repr__(self) -> str:
        """Show the settings."""
        return f"{type(self).__name__}(color_type={self.color_type!r})"
