"""A UNet as FCMAE's decoder, with and without skips (paper, table 1a).

The paper names this decoder and its accuracy; its widths, its blocks and how skips are merged are
ours.

Shape suffixes: N batch, C channels of an encoder stage, D decoder channels at the resolution at
hand, H and W the grid of cells, h and w that of another resolution, P values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.nn.block import Block
from mmconvnextv2.nn.cells import CELL_SIZE, STAGE_SIDES, enlarge_mask
from mmconvnextv2.nn.init import INIT_STD, init_weights
from mmconvnextv2.nn.layouts import DenseLayout
from mmconvnextv2.nn.patchify import patchify, unpatchify

NUM_RESOLUTIONS = len(STAGE_SIDES)
"""The strides 32, 16, 8 and 4, which are those of the encoder's stages in reverse."""

PATCH_SIZE = CELL_SIZE // STAGE_SIDES[0]
"""Side in pixels of what one position predicts at the finest resolution: 4."""


class FCMAEUNetDecoder(nn.Module):
    """Predict pixels at stride 4, by doubling the resolution of the last stage three times.

    Each resolution has one dense ConvNeXt V2 block, and half the width of the one before. With
    skips, the features of the encoder's stage of the same resolution are projected and added, with
    a learned mask token of that resolution where cells are removed.

    Args:
        in_channels: channels of the encoder's last stage, for a decoder without skips; or those of
            all four stages, for one with skips. The encoder then returns all four:
            ``out_indices=(0, 1, 2, 3)``.
        image_channels: channels of the images to predict.
        num_channels: width at stride 32, a multiple of 8.

    Raises:
        ValueError: an argument is outside what is allowed.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        image_channels: int = 3,
        num_channels: int = 512,
    ) -> None:
        super().__init__()
        stages = tuple(in_channels) if isinstance(in_channels, Sequence) else (in_channels,)
        if isinstance(in_channels, Sequence) and len(stages) != NUM_RESOLUTIONS:
            raise ValueError(
                f"in_channels must be one number (no skips) or {NUM_RESOLUTIONS} (skips from every "
                f"stage), got {in_channels!r}"
            )
        for channels in stages:
            check_count("in_channels", channels)
        check_count("image_channels", image_channels)
        check_count("num_channels", num_channels)
        halvings = 2 ** (NUM_RESOLUTIONS - 1)
        if num_channels % halvings:
            raise ValueError(f"num_channels must be a multiple of {halvings}, got {num_channels}")
        self.in_channels = in_channels if isinstance(in_channels, int) else stages
        self.image_channels = image_channels
        widths = [num_channels // 2**i for i in range(NUM_RESOLUTIONS)]
        # Deepest first, like everything here; without skips there is only that one.
        self.inputs = nn.ModuleList(
            [MaskedInput(c, d) for c, d in zip(reversed(stages), widths, strict=False)]
        )
        self.blocks = nn.ModuleList([Block(width) for width in widths])
        self.upsamplings = nn.ModuleList([nn.Linear(width, 2 * width) for width in widths[:-1]])
        self.prediction = nn.Linear(widths[-1], PATCH_SIZE**2 * image_channels)
        self.apply(init_weights)

    def forward(self, features: Tensor | Sequence[Tensor], mask_NHW: Tensor) -> Tensor:
        """Predict every patch.

        Args:
            features: encoder features ``(N, C, H, W)`` of the last stage, or with skips those of
                the four stages, finest first. Those of removed cells are ignored.
            mask_NHW: boolean ``(N, H, W)``, True where a cell is removed.

        Returns:
            ``(N, H, W, P)``, in the order of `patchify`.
        """
        maps = [features] if isinstance(features, Tensor) else list(features)[::-1]
        layout = DenseLayout()
        x_NhwD = self.blocks[0](self.inputs[0](maps[0], mask_NHW), layout)
        for i in range(1, NUM_RESOLUTIONS):
            # A linear layer and a rearrangement: a transposed convolution of kernel and stride 2.
            x_NhwD = unpatchify(self.upsamplings[i - 1](x_NhwD), 2).permute(0, 2, 3, 1)
            if i < len(self.inputs):
                x_NhwD = x_NhwD + self.inputs[i](maps[i], mask_NHW)
            x_NhwD = self.blocks[i](x_NhwD, layout)
        return patchify(unpatchify(self.prediction(x_NhwD), PATCH_SIZE), CELL_SIZE)


class MaskedInput(nn.Module):
    """Project the features of visible cells; put a learned token where cells are removed.

    Args:
        in_channels: channels C of the features.
        num_channels: channels D of the result.
    """

    def __init__(self, in_channels: int, num_channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(in_channels, num_channels)
        self.mask_token = nn.Parameter(torch.empty(num_channels))
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(self, features_NChw: Tensor, mask_NHW: Tensor) -> Tensor:
        """Turn features ``(N, C, h, w)`` of any stage into ``(N, h, w, D)``."""
        side = features_NChw.shape[2] // mask_NHW.shape[1]
        mask_Nhw = enlarge_mask(mask_NHW, side)
        x_NhwD = self.projection(features_NChw.permute(0, 2, 3, 1))
        return torch.where(mask_Nhw[..., None], self.mask_token.to(x_NhwD.dtype), x_NhwD)
