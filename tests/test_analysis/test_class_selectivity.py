"""Class selectivity against loops, on cases whose answer is known, and from images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmconvnextv2.analysis.class_selectivity import ClassActivity, class_selectivity
from mmconvnextv2.nn import ConvNeXtV2

pytestmark = pytest.mark.unit


def by_definition(activity: np.ndarray) -> list[float]:
    values = []
    for channel in activity.T:
        best = int(np.argmax(channel))
        rest = np.mean([mean for k, mean in enumerate(channel) if k != best])
        values.append((channel[best] - rest) / (channel[best] + rest))
    return values


@pytest.mark.parametrize("classes", [2, 7])
def test_against_loops(classes: int) -> None:
    activity = torch.rand(classes, 30, dtype=torch.float64) ** 3
    expected = by_definition(activity.numpy())
    assert class_selectivity(activity).tolist() == pytest.approx(expected, abs=1e-9)
    assert max(expected) - min(expected) > 0.2


def test_known_cases() -> None:
    pure, constant, silent, half = torch.zeros(4, 5).unbind()
    pure[3], constant[:], half[:2] = 2.5, 0.7, 1.0
    values = class_selectivity(torch.stack([pure, constant, silent, half], dim=1)).tolist()
    # Of `half`: 1 for the best class, 1/4 on average for the four others.
    assert values == pytest.approx([1, 0, 0, 0.75 / 1.25], abs=1e-6)


@pytest.mark.parametrize("activity", [torch.rand(1, 3), torch.rand(3), -torch.rand(3, 3)])
def test_what_has_no_selectivity_is_refused(activity: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        class_selectivity(activity)


def test_activity_of_images(tiny_arch: dict, randomize_grn) -> None:
    """Two batches of mixed classes; class 1 has no image and does not count as one."""
    net = randomize_grn(ConvNeXtV2(tiny_arch, out_indices=(0, 1, 2, 3), output_norms=False)).eval()
    net.gap_before_final_norm = False
    x, labels = torch.randn(7, 3, 64, 64), torch.tensor([0, 2, 2, 3, 0, 3, 0])
    activity = ClassActivity(4)
    with torch.no_grad():
        activity.add(net, x[:3], labels[:3])
        activity.add(net, x[3:], labels[3:])
        ends = net(x)
    assert activity.counts_K.tolist() == [3, 0, 2, 2]
    means = activity.means_KC()
    assert len(means) == 5  # blocks; the third stage has two
    for block, features in zip((0, 1, 3, 4), ends, strict=True):
        images = features.clamp(min=0).double().mean(dim=(2, 3))
        expected = torch.stack([images[labels == k].mean(dim=0) for k in (0, 2, 3)])
        torch.testing.assert_close(means[block], expected, rtol=1e-4, atol=1e-6)
