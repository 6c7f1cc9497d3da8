"""Counts dead and saturated channels, which the paper's figure 3 shows as squares of one colour.

Shape suffixes: N images, C channels, P positions, H and W.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DEAD_BELOW = 1e-3
"""A channel is dead if its largest value is at most this share of the median norm."""

FLAT_BELOW = 0.05
"""A channel is flat if its coefficient of variation over positions is below this."""


class ChannelKinds(NamedTuple):
    """Which channels of a block are dead, and which saturated; none is both.

    Attributes:
        dead_C: bool, never active: the largest value over all positions and images is at
            most `DEAD_BELOW` times the median of the channels' norms.
        saturated_C: bool, high and flat: the coefficient of variation over positions is below
            `FLAT_BELOW`, and the norm above the median.
    """

    dead_C: Tensor
    saturated_C: Tensor


class ChannelActivity:
    """Largest value, norm and variation of the channels of one block, batch by batch.

    The paper has no numbers for what it calls dead or saturated neurons; the definitions are this
    project's. The place is after GELU and before GRN, where a channel that is never positive is
    dead as it would be after a ReLU. The norm of a channel is its L2 norm over positions, and its
    variation the standard deviation over positions divided by the size of the mean; both are
    averaged over images.
    """

    def __init__(self) -> None:
        self._images = 0
        self._largest_C = self._norms_C = self._variations_C = torch.zeros(0)

    def add(self, features_NCHW: Tensor) -> None:
        """Add the features of some images.

        Raises:
            ValueError: features of fewer than two positions, which cannot vary.
        """
        features_NCP = features_NCHW.flatten(2).double()
        if features_NCP.shape[2] < 2:
            raise ValueError(
                "whether a channel is saturated shows at two positions or more, got a map of "
                f"{tuple(features_NCHW.shape[2:])}: use larger images"
            )
        largest_C = features_NCP.amax(dim=(0, 2))
        norms_C = features_NCP.norm(dim=2).sum(dim=0)
        deviation_NC = features_NCP.std(dim=2, correction=0)
        # 0 / 0, a channel without any value, is no sign of saturation: its norm is not high.
        variations_C = (deviation_NC / features_NCP.mean(dim=2).abs()).nan_to_num(0.0).sum(dim=0)
        if self._images == 0:
            self._largest_C, self._norms_C, self._variations_C = largest_C, norms_C, variations_C
        else:
            self._largest_C = torch.maximum(self._largest_C, largest_C)
            self._norms_C = self._norms_C + norms_C
            self._variations_C = self._variations_C + variations_C
        self._images += len(features_NCHW)

    def kinds(self) -> ChannelKinds:
        """Sort the channels.

        Raises:
            ValueError: no image was added.
        """
        if self._images == 0:
            raise ValueError("there is no image whose channels could be sorted")
        norms_C = self._norms_C / self._images
        median = norms_C.quantile(0.5)
        # Not "<": where most channels are 0 everywhere, so is the median.
        dead_C = self._largest_C <= DEAD_BELOW * median
        flat_C = self._variations_C / self._images < FLAT_BELOW
        return ChannelKinds(dead_C, flat_C & (norms_C > median) & ~dead_C)
