"""The ConvNeXt V2 block, and V1's (paper, figure 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmconvnextv2.nn.eager import is_eager_on_cpu
from mmconvnextv2.nn.grn import GRN
from mmconvnextv2.nn.layouts import Layout
from mmconvnextv2.nn.mlp import grn_mlp
from mmconvnextv2.nn.response_norms import ResponseNorm, ResponseNormConfig, build_response_norm


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, pointwise to 4C, GELU, GRN, pointwise to C, residual.

    V1's block has no GRN and scales its residual branch by a learned factor a channel.

    Args:
        num_channels: number of channels C.
        drop_path_rate: probability to drop the residual branch of an image while training.
        use_grn: normalise the 4C features; False for V1.
        layer_scale_init_value: start of V1's LayerScale; 0 for none, as in V2.
        response_norm: what stands in GRN's place, for ablations; None for GRN itself.

    Raises:
        ValueError: `response_norm` is unknown, or given without `use_grn`.
    """

    def __init__(
        self,
        num_channels: int,
        drop_path_rate: float = 0.0,
        use_grn: bool = True,
        layer_scale_init_value: float = 0.0,
        response_norm: ResponseNormConfig | None = None,
    ) -> None:
        super().__init__()
        hidden_channels = 4 * num_channels
        self.depthwise_conv = nn.Conv2d(
            num_channels, num_channels, kernel_size=7, padding=3, groups=num_channels
        )
        self.norm = nn.LayerNorm(num_channels, eps=1e-6)
        self.pointwise_conv1 = nn.Linear(num_channels, hidden_channels)
        self.grn = _build_grn(hidden_channels, use_grn, response_norm)
        self.pointwise_conv2 = nn.Linear(hidden_channels, num_channels)
        self.gamma = (
            nn.Parameter(torch.full((num_channels,), float(layer_scale_init_value)))
            if layer_scale_init_value > 0
            else None
        )
        self.drop_path_rate = drop_path_rate

    def forward(
        self, features: Tensor, layout: Layout, branch_factor_N1: Tensor | None = None
    ) -> Tensor:
        """Apply the block.

        Args:
            features: features in the layout's shape, which the result keeps.
            layout: where the visible cells are.
            branch_factor_N1: factor of each image's residual branch, from `draw_drop_path`.
        """
        x = layout.depthwise(features, self.depthwise_conv)
        x = self._pointwise(self.norm(x), layout)
        if self.gamma is not None:
            x = x * self.gamma.to(x.dtype)
        if branch_factor_N1 is not None:
            x = layout.scale_per_image(x, branch_factor_N1.to(x.dtype))
        return features + x

    def _pointwise(self, x: Tensor, layout: Layout) -> Tensor:
        """Both pointwise layers, with GELU and GRN between them."""
        images_NPC = layout.group_images(x)
        if type(self.grn) is GRN and images_NPC is not None and is_eager_on_cpu(x):
            x_NPC = grn_mlp(images_NPC, self.pointwise_conv1, self.grn, self.pointwise_conv2)
            return x_NPC.view_as(x)
        x = layout.zero_removed(F.gelu(self.pointwise_conv1(x)))
        if self.grn is not None:
            x = self.grn(x, layout)
        return layout.zero_removed(self.pointwise_conv2(x))

    def draw_drop_path(self, batch_size: int, device: torch.device) -> Tensor | None:
        """Draw which images keep their residual branch (Huang et al., 2016).

        Apart from `forward`, so that a compiled or recomputed block draws what a plain one does.

        Returns:
            ``(N, 1)``, 0 or 1 / (1 - rate); None where nothing is dropped.
        """
        if not self.training or self.drop_path_rate == 0:
            return None
        keep_rate = 1 - self.drop_path_rate
        return torch.empty(batch_size, 1, device=device).bernoulli_(keep_rate) / keep_rate

    def extra_repr(self) -> str:
        """Show the drop path rate, which no submodule shows."""
        return f"drop_path_rate={self.drop_path_rate:g}" if self.drop_path_rate else ""


def _build_grn(
    num_channels: int, use_grn: bool, response_norm: ResponseNormConfig | None
) -> GRN | ResponseNorm | None:
    """GRN, or what stands in its place."""
    if response_norm is None:
        return GRN(num_channels) if use_grn else None
    if not use_grn:
        raise ValueError(
            f"response_norm={response_norm!r} takes GRN's place, and use_grn=False leaves it "
            f"empty: give one of the two"
        )
    return build_response_norm(response_norm, num_channels)
