"""Dead and saturated channels that were made so by hand."""

from __future__ import annotations

import pytest
import torch

from mmconvnextv2.analysis.channel_activity import ChannelActivity

pytestmark = pytest.mark.unit

DEAD, NEGATIVE, HIGH_FLAT, LOW_FLAT, HIGH_VARIED, WAKES_ONCE = range(6)


def make_features() -> torch.Tensor:
    """Channels 6 to 11 vary around 1, so that the median norm is theirs, about 1.1 x 6."""
    features = 0.5 + torch.rand(5, 12, 6, 6)
    ripple = 1 + 0.02 * (torch.rand(5, 6, 6) - 0.5)
    features[:, DEAD] = 1e-4 * torch.rand(5, 6, 6)
    features[:, NEGATIVE] = -0.1 * torch.rand(5, 6, 6)
    features[:, HIGH_FLAT] = 3 * ripple
    features[:, LOW_FLAT] = 0.2 * ripple
    features[:, HIGH_VARIED] = 6 * torch.rand(5, 6, 6)
    features[:, WAKES_ONCE] = 0
    features[0, WAKES_ONCE, 2, 3] = 1.0
    return features


@pytest.mark.parametrize("batches", [[5], [2, 2, 1]], ids=["one batch", "three"])
def test_kinds(batches: list[int]) -> None:
    activity = ChannelActivity()
    for batch in make_features().split(batches):
        activity.add(batch)
    kinds = activity.kinds()
    assert kinds.dead_C.nonzero().flatten().tolist() == [DEAD, NEGATIVE]
    assert kinds.saturated_C.nonzero().flatten().tolist() == [HIGH_FLAT]


@pytest.mark.parametrize("share,dead", [(0.9e-3, True), (1.2e-3, False)])
def test_limits(share: float, dead: bool) -> None:
    """Median norm of constant channels of 1 on 4 positions: 2; limits on both sides of it."""
    features = torch.ones(1, 5, 2, 2)
    features[0, 0] = 0
    features[0, 0, 0, 0] = 2 * share
    wave = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    features[0, 3], features[0, 4] = 1.5 + 1.5 * 0.045 * wave, 1.5 + 1.5 * 0.055 * wave
    activity = ChannelActivity()
    activity.add(features)
    kinds = activity.kinds()
    assert kinds.dead_C.tolist() == [dead, False, False, False, False]
    assert kinds.saturated_C.tolist() == [False, False, False, True, False]


def test_a_block_of_zeros_is_dead() -> None:
    activity = ChannelActivity()
    activity.add(torch.zeros(2, 3, 4, 4))
    kinds = activity.kinds()
    assert kinds.dead_C.all() and not kinds.saturated_C.any()


def test_what_cannot_be_sorted_is_refused() -> None:
    with pytest.raises(ValueError, match="two positions"):
        ChannelActivity().add(torch.ones(2, 3, 1, 1))
    with pytest.raises(ValueError, match="no image"):
        ChannelActivity().kinds()
