"""Diversity, rank and leave-one-out accuracy against definitions written out in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmconvnextv2.analysis.feature_statistics import (
    channel_diversity,
    effective_rank,
    leave_one_out_knn,
)
from mmconvnextv2.analysis.published_curves import PAPER_CURVES, layer_positions

pytestmark = pytest.mark.unit


def diversity_by_definition(features_CHW: np.ndarray) -> float:
    """1/C^2 sum_ij (1 - cos) / 2 in float64; a pair with a dead channel adds 0."""
    maps = features_CHW.reshape(len(features_CHW), -1).astype(np.float64)
    total = 0.0
    for a in maps:
        for b in maps:
            length = np.linalg.norm(a) * np.linalg.norm(b)
            total += (1 - a @ b / length) / 2 if length > 0 else 0.0
    return total / len(maps) ** 2


@pytest.mark.parametrize("offset", [0.0, 2.0, -1.0])
def test_diversity_is_the_double_sum(offset: float) -> None:
    features = torch.randn(3, 13, 5, 4) + offset
    features[1, [2, 7]] = 0  # dead channels
    features[2] *= torch.logspace(-12, 12, 13)[:, None, None]
    expected = [diversity_by_definition(image.numpy()) for image in features]
    assert channel_diversity(features).tolist() == pytest.approx(expected, abs=1e-6)


def test_diversity_of_known_cases() -> None:
    one = torch.rand(1, 1, 4, 4) + 0.1
    factors = torch.tensor([1.0, 3.0, 0.2, 1e-20])[:, None, None]
    assert channel_diversity(one * factors).item() == pytest.approx(0, abs=1e-7)
    assert channel_diversity(torch.cat([one, -one], dim=1)).item() == pytest.approx(0.5)
    assert channel_diversity(torch.zeros(2, 5, 4, 4)).tolist() == [0, 0]
    orthogonal = torch.eye(16).view(1, 16, 4, 4)
    assert channel_diversity(orthogonal).item() == pytest.approx(0.5 * (1 - 1 / 16))


def test_the_papers_curves_have_its_blocks_and_means() -> None:
    counts_and_means = {
        name: (len(values), round(sum(values) / len(values), 3))
        for name, values in PAPER_CURVES.items()
    }
    assert counts_and_means["ConvNeXt V2, FCMAE"] == (36, 0.462)
    assert counts_and_means["ConvNeXt V1, FCMAE"] == (36, 0.298)
    assert [len(values) for values in PAPER_CURVES.values()] == [36, 36, 36, 12]
    assert layer_positions(3) == [0, 0.5, 1] and layer_positions(1) == [0]


def test_dying_channels_lower_the_diversity() -> None:
    features = torch.randn(1, 32, 6, 6)
    values = []
    for dead in (0, 8, 16, 32):
        features[:, :dead] = 0
        values.append(channel_diversity(features).item())
    assert values == sorted(values, reverse=True) and values[-1] == 0


def test_removed_positions_change_nothing() -> None:
    features = torch.randn(1, 6, 4, 8)
    features[..., 4:] = 0
    cut = features[..., :4].contiguous()
    assert torch.allclose(channel_diversity(features), channel_diversity(cut), atol=1e-7)


def test_rank_from_known_singular_values() -> None:
    values = np.array([5.0, 3.0, 1.0, 0.5])
    left, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 4)))
    right, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 4)))
    share = values / values.sum()
    expected = math.exp(-sum(p * math.log(p) for p in share))
    matrix = torch.from_numpy(left * values @ right.T)
    assert effective_rank(matrix) == pytest.approx(expected)
    assert effective_rank(1e3 * matrix.float()) == pytest.approx(expected, rel=1e-4)


def test_rank_of_known_cases() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.rand(8).expand(20, 8)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 4)) == 1
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan]])))


def knn_by_definition(features: np.ndarray, labels: np.ndarray, k: int, temperature: float) -> int:
    """Number of images that the votes of the others classify rightly."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    hits = 0
    for i in range(len(features)):
        others = [j for j in range(len(features)) if j != i]
        nearest = sorted(others, key=lambda j: -float(features[i] @ features[j]))[:k]
        votes = np.zeros(labels.max() + 1)
        for j in nearest:
            votes[labels[j]] += math.exp(features[i] @ features[j] / temperature)
        hits += votes.argmax() == labels[i]
    return hits


@pytest.mark.parametrize("k", [1, 3, 100])
def test_leave_one_out_is_the_loop_over_images(k: int) -> None:
    labels = torch.arange(40) % 4
    features = torch.randn(4, 12)[labels] + 1.5 * torch.randn(40, 12)
    hits = knn_by_definition(features.double().numpy(), labels.numpy(), k, 0.1)
    assert 0 < hits < 40
    assert leave_one_out_knn(features, labels, k, 0.1) == pytest.approx(100 * hits / 40)


def test_an_image_does_not_vote_for_itself() -> None:
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert leave_one_out_knn(features, torch.tensor([0, 1, 0, 1]), k=1) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: channel_diversity(torch.zeros(3, 4, 4)),
        lambda: channel_diversity(torch.zeros(3, 0, 4, 4)),
        lambda: effective_rank(torch.zeros(0, 4)),
        lambda: leave_one_out_knn(torch.ones(1, 2), torch.tensor([0])),
        lambda: leave_one_out_knn(torch.ones(3, 2), torch.tensor([0, 1])),
        lambda: leave_one_out_knn(torch.ones(2, 2), torch.tensor([0, -1])),
        lambda: leave_one_out_knn(torch.ones(2, 2), torch.tensor([0, 1]), k=0),
    ],
)
def test_what_cannot_be_measured_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
