"""Images to patches and back.

Shape suffixes: N batch, C channels, H and W the grid of patches, p and q positions in a patch.
"""

from __future__ import annotations

from torch import Tensor


def patchify(x_NCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into square patches.

    Args:
        x_NCHW: images ``(N, C, H * p, W * p)``.
        patch_size: side p of a patch in pixels.

    Returns:
        ``(N, H, W, p * p * C)``; inside a patch the order is row, column, channel.

    Raises:
        ValueError: a side of the images is not a multiple of `patch_size`.
    """
    batch, channels, height, width = x_NCHW.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"image sides must be multiples of {patch_size}, got {height}x{width} (H x W)"
        )
    x_NCHpWq = x_NCHW.reshape(
        batch, channels, height // patch_size, patch_size, width // patch_size, patch_size
    )
    return x_NCHpWq.permute(0, 2, 4, 3, 5, 1).flatten(3)


def unpatchify(patches_NHWP: Tensor, patch_size: int) -> Tensor:
    """Put patches together again, the inverse of `patchify`.

    Args:
        patches_NHWP: ``(N, H, W, p * p * C)``.
        patch_size: side p of a patch in pixels.

    Returns:
        Images ``(N, C, H * p, W * p)``.
    """
    batch, height, width, _ = patches_NHWP.shape
    x_NHWpqC = patches_NHWP.reshape(batch, height, width, patch_size, patch_size, -1)
    x_NCHpWq = x_NHWpqC.permute(0, 5, 1, 3, 2, 4)
    return x_NCHpWq.reshape(batch, -1, height * patch_size, width * patch_size)
