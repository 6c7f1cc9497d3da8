"""The ConvNeXt V2 block (paper, figure 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .grn import GRN
from .layouts import Layout


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, pointwise to 4C, GELU, GRN, pointwise to C, residual.

    Args:
        num_channels: number of channels C.
        drop_path_rate: probability to drop the residual branch of an image while training.
    """

    def __init__(self, num_channels: int, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        hidden_channels = 4 * num_channels
        self.depthwise_conv = nn.Conv2d(
            num_channels, num_channels, kernel_size=7, padding=3, groups=num_channels
        )
        self.norm = nn.LayerNorm(num_channels, eps=1e-6)
        self.pointwise_conv1 = nn.Linear(num_channels, hidden_channels)
        self.grn = GRN(hidden_channels)
        self.pointwise_conv2 = nn.Linear(hidden_channels, num_channels)
        self.drop_path_rate = drop_path_rate

    def forward(self, features: Tensor, layout: Layout) -> Tensor:
        """Apply the block to features in the layout's shape, which the result keeps."""
        x = layout.depthwise(features, self.depthwise_conv)
        x = self.norm(x)
        x = F.gelu(self.pointwise_conv1(x))
        x = self.grn(layout.zero_removed(x), layout)
        x = layout.zero_removed(self.pointwise_conv2(x))
        if self.training and self.drop_path_rate > 0:
            x = self._drop_path(x, layout)
        return features + x

    def _drop_path(self, x: Tensor, layout: Layout) -> Tensor:
        keep_rate = 1 - self.drop_path_rate
        batch = layout.num_images(x)
        factor_N1 = torch.empty(batch, 1, dtype=x.dtype, device=x.device).bernoulli_(keep_rate)
        return layout.scale_per_image(x, factor_N1 / keep_rate)

    def extra_repr(self) -> str:
        """Show the drop path rate, which no submodule shows."""
        return f"drop_path_rate={self.drop_path_rate:g}" if self.drop_path_rate else ""
