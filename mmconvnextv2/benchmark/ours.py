"""Our models, images and masks, all drawn from the seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmconvnextv2.benchmark.compare import Settings
from mmconvnextv2.nn import (
    CELL_SIZE,
    GRN,
    MASK_LAYOUTS,
    Block,
    ConvNeXtV2,
    random_masking,
)

MASK_RATIO = 0.6
"""Share of the cells that FCMAE removes (paper, section 3)."""

REFERENCE = "masked"
"""The layout that the others must agree with."""

OPTIONAL_LAYOUTS = frozenset({"minkowski", "triton"})
"""Layouts that need more than torch on a CPU, and are left out where it is missing."""


def layouts() -> list[str]:
    """Names of all layouts, the reference first."""
    return sorted(MASK_LAYOUTS, key=lambda name: name != REFERENCE)


def build_encoder(settings: Settings, **options: Any) -> ConvNeXtV2:
    """An encoder as FCMAE trains it, with weights from the seed, on the device.

    GRN starts as the identity; here its parameters are random, so that a wrong norm would show.

    Args:
        settings: architecture, seed and device.
        **options: further arguments of `ConvNeXtV2`.
    """
    torch.manual_seed(settings.seed)
    encoder = ConvNeXtV2(settings.arch, gap_before_final_norm=False, output_norms=False, **options)
    for module in encoder.modules():
        if isinstance(module, GRN):
            nn.init.normal_(module.gamma, std=0.5)
            nn.init.normal_(module.beta, std=0.1)
    return encoder.to(settings.device)


def draw_images(settings: Settings, size: tuple[int, int] | None = None) -> Tensor:
    """Normalised images on the device.

    Args:
        settings: batch, seed, device and, where `size` is None, the side of the images.
        size: height and width.

    Returns:
        ``(N, 3, H, W)``.
    """
    height, width = size or (settings.image_size, settings.image_size)
    generator = torch.Generator().manual_seed(settings.seed)
    images = torch.randn(settings.batch, 3, height, width, generator=generator)
    return images.to(settings.device)


def draw_mask(
    settings: Settings, mask_ratio: float = MASK_RATIO, generator: torch.Generator | None = None
) -> Tensor:
    """A mask on the device.

    Args:
        settings: batch, image size, seed and device.
        mask_ratio: share of the cells to remove; 0 removes nothing.
        generator: CPU generator to draw from; a new one from the seed when None.

    Returns:
        Boolean ``(N, H / 32, W / 32)``, True where a cell is removed.
    """
    side = settings.image_size // CELL_SIZE
    if mask_ratio == 0:
        mask = torch.zeros(settings.batch, side, side, dtype=torch.bool)
    else:
        generator = generator or torch.Generator().manual_seed(settings.seed)
        mask = random_masking(settings.batch, (side, side), mask_ratio, generator=generator)
    return mask.to(settings.device)


def compile_blocks(module: nn.Module) -> None:
    """Compile each block in place, as `CompileBlocksHook` does in training."""
    for block in module.modules():
        if isinstance(block, Block):
            block.compile(dynamic=False)
