"""Lets a model in training reconstruct images, and leaves the training as it was.

Shape suffixes: N images, C channels, H and W pixels, h and w cells of the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmconvnextv2.seeding import seeded_cpu
from mmconvnextv2.visualization.reconstruction import reconstruction_grid


def draw_reconstructions(
    model: nn.Module,
    images: Sequence[Tensor],
    *,
    seed: int = 0,
    mask_ratio: float | None = None,
    channels: Sequence[int] | None = None,
) -> Image.Image:
    """Let a registered `FCMAE` reconstruct images and draw the grid, without disturbing training.

    Brightness runs over the clipping bounds of the model's data preprocessor where it has some,
    else over 0 to 255. The masks depend on the seed alone, so that pictures of one run can be
    compared. The global random states and the train/eval mode of every submodule are as before
    afterwards.

    Args:
        model: An `mmconvnextv2.models.FCMAE`, not wrapped.
        images: Tensors (C, H, W) as the pipelines give them, uint8 (colour images in BGR) or
            floating-point, all of one size, H and W multiples of 32.
        seed: Seed of the masks.
        mask_ratio: Share of cells to remove, inside (0, 1); by default the model's own.
        channels: One to three channels to show, from 0; by default the first three.

    Returns:
        The grid of `reconstruction_grid`.

    Raises:
        ValueError: There is no image, or sizes or ratio are not allowed.
    """
    if not images:
        raise ValueError("there is no image to reconstruct: the list is empty")
    preprocessor: Any = model.data_preprocessor
    with seeded_cpu(seed), evaluation_mode(model):
        batch = preprocessor({"inputs": list(images)}, False)
        x_NCHW = batch["inputs"]
        mask_Nhw = preprocessor.draw_mask(
            len(images),
            (x_NCHW.shape[-2], x_NCHW.shape[-1]),
            mask_ratio,
            generator=torch.Generator().manual_seed(seed),
        ).to(x_NCHW.device)
        samples = model(x_NCHW, batch.get("data_samples"), mask=mask_Nhw, mode="predict")
        reconstruction_NCHW = torch.stack([sample.reconstruction for sample in samples])
    clip = None if preprocessor.low is None else (preprocessor.low, preprocessor.high)
    return reconstruction_grid(
        x_NCHW,
        reconstruction_NCHW,
        mask_Nhw,
        preprocessor.mean,
        preprocessor.std,
        clip,
        channels,
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode without gradients, then restore the mode of every submodule.

    Modes are restored one by one, because parts of a model may be frozen in eval mode while the
    rest trains.

    Args:
        model: The model to look at.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
