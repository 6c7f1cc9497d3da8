"""Global Response Normalization (paper, section 4, equations 1 to 3 and algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmconvnextv2.nn.layouts import DenseLayout, Layout


class GRN(nn.Module):
    """Global Response Normalization over the visible positions of each image.

    ``G(X)_c`` is the L2 norm of channel c over positions, ``N(X)_c = G(X)_c / (mean_c G(X) +
    eps)``, and the result is ``gamma * X * N(X) + beta + X``. The paper's equation 2 divides by
    the sum over channels; its code, the paper's footnote and this module divide by the mean.
    Gamma and beta start at zero, where the layer is the identity.

    Args:
        num_channels: number of channels C.
        eps: added to the mean norm.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, features: Tensor, layout: Layout | None = None) -> Tensor:
        """Normalise.

        Args:
            features: features in the layout's shape, channels last; removed cells hold zeros.
            layout: where the visible cells are; None for dense features ``(N, H, W, C)``.

        Returns:
            Tensor of the shape and dtype of `features`.
        """
        layout = layout or DenseLayout()
        norm_NC = layout.norm_per_image(features)
        relative_NC = norm_NC / (norm_NC.mean(dim=-1, keepdim=True) + self.eps)
        # One factor a channel and image: gamma * X * N(X) + X is (1 + gamma * N(X)) * X.
        factor_NC = (1 + self.gamma * relative_NC).to(features.dtype)
        return layout.scale_per_image(features, factor_NC) + self.beta.to(features.dtype)
