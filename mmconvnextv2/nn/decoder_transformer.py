"""MAE's transformer as FCMAE's decoder (paper, table 1a).

The paper names this decoder and its accuracy and no size. The defaults are those of MAE (He et al.,
https://arxiv.org/abs/2111.06377): 8 pre-norm blocks of width 512 with 16 heads, and fixed sine and
cosine embeddings of positions.

Shape suffixes: N batch, C encoder channels, D decoder channels, H and W the grid of cells, L = H W
tokens, h heads, d channels of a head, P values of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.nn.cells import CELL_SIZE
from mmconvnextv2.nn.init import INIT_STD, init_weights


class FCMAETransformerDecoder(nn.Module):
    """Predict the pixels of each cell by self-attention between visible cells and mask tokens.

    Args:
        in_channels: channels of the encoder's last stage.
        image_channels: channels of the images to predict.
        num_channels: width D, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        num_heads: heads of each block's attention.

    Raises:
        ValueError: an argument is outside what is allowed.
    """

    def __init__(
        self,
        in_channels: int,
        image_channels: int = 3,
        num_channels: int = 512,
        depth: int = 8,
        num_heads: int = 16,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("image_channels", image_channels)
        check_count("num_channels", num_channels)
        check_count("depth", depth, least=0)
        check_count("num_heads", num_heads)
        if num_channels % 4 or num_channels % num_heads:
            raise ValueError(
                f"num_channels must be a multiple of 4 and of num_heads, got {num_channels} "
                f"with num_heads={num_heads}"
            )
        self.in_channels = in_channels
        self.image_channels = image_channels
        self.projection = nn.Linear(in_channels, num_channels)
        self.mask_token = nn.Parameter(torch.empty(num_channels))
        self.blocks = nn.ModuleList(
            [TransformerBlock(num_channels, num_heads) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(num_channels, eps=1e-6)
        self.prediction = nn.Linear(num_channels, CELL_SIZE**2 * image_channels)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(self, features_NCHW: Tensor, mask_NHW: Tensor) -> Tensor:
        """Predict every patch.

        Args:
            features_NCHW: encoder features ``(N, C, H, W)`` of any grid; those of removed cells
                are ignored.
            mask_NHW: boolean ``(N, H, W)``, True where a cell is removed.

        Returns:
            ``(N, H, W, P)``, in the order of `patchify`.
        """
        x_NHWD = self.projection(features_NCHW.permute(0, 2, 3, 1))
        x_NHWD = torch.where(mask_NHW[..., None], self.mask_token.to(x_NHWD.dtype), x_NHWD)
        _, height, width, num_channels = x_NHWD.shape
        positions_HWD = sincos_positions(height, width, num_channels, x_NHWD.device)
        x_NLD = (x_NHWD + positions_HWD.to(x_NHWD.dtype)).flatten(1, 2)
        for block in self.blocks:
            x_NLD = block(x_NLD)
        return self.prediction(self.norm(x_NLD)).unflatten(1, (height, width))


class TransformerBlock(nn.Module):
    """Self-attention and an MLP of four times the width, each after a norm and with a residual.

    `nn.TransformerEncoderLayer` is the same, but takes a fused path in evaluation, whose
    arithmetic `mmconvnextv2.analysis.complexity` cannot count.

    Args:
        num_channels: width D.
        num_heads: heads of the attention.
    """

    def __init__(self, num_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(num_channels, eps=1e-6)
        self.qkv = nn.Linear(num_channels, 3 * num_channels)
        self.proj = nn.Linear(num_channels, num_channels)
        self.norm2 = nn.LayerNorm(num_channels, eps=1e-6)
        self.fc1 = nn.Linear(num_channels, 4 * num_channels)
        self.fc2 = nn.Linear(4 * num_channels, num_channels)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Apply the block to tokens ``(N, L, D)``."""
        x_NLD = x_NLD + self.proj(self._attend(self.norm1(x_NLD)))
        return x_NLD + self.fc2(F.gelu(self.fc1(self.norm2(x_NLD))))

    def _attend(self, x_NLD: Tensor) -> Tensor:
        qkv = self.qkv(x_NLD).unflatten(2, (3, self.num_heads, -1))
        q_NhLd, k_NhLd, v_NhLd = qkv.permute(2, 0, 3, 1, 4)
        attended_NhLd = F.scaled_dot_product_attention(q_NhLd, k_NhLd, v_NhLd)
        return attended_NhLd.transpose(1, 2).flatten(2)


def sincos_positions(
    height: int, width: int, num_channels: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Fixed embeddings of the positions of a grid, as MAE's: half for the row, half for the column.

    Args:
        height: rows H.
        width: columns W.
        num_channels: channels D, a multiple of 4.
        device: where the result lies.

    Returns:
        ``(H, W, D)``, float32: sines and cosines of the row index at D / 4 frequencies from 1 down
        to almost 1 / 10000, then those of the column index.
    """
    steps = torch.arange(num_channels // 4, device=device, dtype=torch.float32)
    frequencies = 10_000 ** (-steps / len(steps))

    def embed(length: int) -> Tensor:
        angles = torch.arange(length, device=device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    rows_HWD = embed(height)[:, None].expand(-1, width, -1)
    columns_HWD = embed(width)[None].expand(height, -1, -1)
    return torch.cat([rows_HWD, columns_HWD], dim=-1)
