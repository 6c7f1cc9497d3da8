"""Class selectivity of the channels of each block (paper, appendix C).

Shape suffixes: N images, K classes, C channels, H and W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmconvnextv2.analysis.block_features import visit_blocks

EPS = 1e-12
"""Added to the denominator, so that a channel without any activity has the selectivity 0."""


def class_selectivity(activity_KC: Tensor, eps: float = EPS) -> Tensor:
    """Selectivity of each channel: from 0, equally active for all classes, to 1, for one alone.

    ``(mu_max - mu_rest) / (mu_max + mu_rest + eps)`` (Morcos et al., 2018, whom the paper cites):
    mu_max is the largest of the mean activities by class, mu_rest the mean of all others.

    Args:
        activity_KC: mean activity of each channel over the images of each class, not negative.
        eps: see `EPS`.

    Returns:
        ``(C,)`` between 0 and 1.

    Raises:
        ValueError: fewer than two classes, or a negative activity.
    """
    if activity_KC.ndim != 2 or len(activity_KC) < 2 or (activity_KC < 0).any():
        raise ValueError(
            "selectivity needs activities (K, C) of at least 2 classes, none of them negative, got "
            f"the shape {tuple(activity_KC.shape)}"
        )
    highest_C = activity_KC.amax(dim=0)
    rest_C = (activity_KC.sum(dim=0) - highest_C).clamp(min=0) / (len(activity_KC) - 1)
    return (highest_C - rest_C) / (highest_C + rest_C + eps)


class ClassActivity:
    """Mean activity of the channels of every block, class by class, batch by batch.

    The activity of a channel for an image is the mean over positions of the ReLU of the block's
    output. The paper says "output of every residual block" and no more: the ReLU is that of the
    cited work, where activities are never negative.

    Args:
        num_classes: number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts_K = torch.zeros(num_classes, dtype=torch.float64)
        self._sums_KC: list[Tensor] = []

    def add(self, backbone: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> None:
        """Encode images and add what their channels do.

        Args:
            backbone: any that `visit_blocks` knows, in eval mode.
            x_NCHW: normalised images.
            labels_N: their classes, from 0.
        """
        labels_N = labels_N.cpu()

        def add_block(i: int, features_NCHW: Tensor) -> None:
            activity_NC = features_NCHW.relu().mean(dim=(2, 3), dtype=torch.float32).double().cpu()
            if i == len(self._sums_KC):
                self._sums_KC.append(activity_NC.new_zeros(len(self.counts_K), len(activity_NC[0])))
            self._sums_KC[i].index_add_(0, labels_N, activity_NC)

        visit_blocks(backbone, x_NCHW, output=add_block)
        self.counts_K += torch.bincount(labels_N, minlength=len(self.counts_K))

    def means_KC(self) -> list[Tensor]:
        """Mean activities of each block, of the classes that have an image."""
        seen_K = self.counts_K > 0
        return [sums_KC[seen_K] / self.counts_K[seen_K, None] for sums_KC in self._sums_KC]
