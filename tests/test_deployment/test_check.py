"""The comparison of an exported file with its module: what passes and what does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmconvnextv2.deployment import CheckFailed, Deployable
from mmconvnextv2.deployment.check import compare
from mmconvnextv2.deployment.modules import Pixels
from mmconvnextv2.nn import ConvNeXtV2

pytestmark = pytest.mark.unit

SHAPES = [(2, 64, 96), (1, 32, 32)]


@pytest.fixture(scope="module")
def module() -> Deployable:
    torch.manual_seed(0)
    arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 16])
    network = ConvNeXtV2(arch, out_indices=(2, 3), gap_before_final_norm=False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pixels = Pixels("RGB", [120.0, 110.0, 100.0], [50.0, 60.0, 70.0])
    return Deployable(network, ("stage3", "stage4"), pixels)


def test_the_error_is_that_of_the_worst_output(module) -> None:
    seen = []

    def run(image_NCHW: Tensor) -> list[Tensor]:
        seen.append(image_NCHW)
        first, last = module(image_NCHW)
        last = last.clone()
        last[-1, 3, 0, 0] += 1e-3
        return [first, last]

    comparisons = compare(module, run, SHAPES, 1e-2)
    assert [(c.images, c.shape) for c in comparisons] == [
        (name, (n, 3, h, w)) for n, h, w in SHAPES for name in ("noise", "pattern")
    ]
    for image_NCHW, comparison in zip(seen, comparisons, strict=True):
        largest = module(image_NCHW)[1].abs().max().item()
        assert comparison.error == pytest.approx(1e-3, rel=1e-2)
        assert comparison.relative == pytest.approx(1e-3 / largest, rel=1e-2)
        assert image_NCHW.min() >= 0 and 100 < image_NCHW.max() <= 255
        assert image_NCHW.std() > 10
    assert not torch.equal(seen[0][0], seen[0][1]) and not torch.equal(seen[1][0], seen[1][1])


@pytest.mark.parametrize(
    "spoil,words",
    [
        (lambda x: x * 1.01, "the tolerance is 0.001"),
        (lambda x: x + float("nan"), "nan"),
        (lambda x: x[:, :, :1], "gives shapes"),
        (lambda x: x.flip(0), "the tolerance is 0.001"),
    ],
)
def test_what_differs_is_refused(module, spoil, words: str) -> None:
    with pytest.raises(CheckFailed, match=words):
        compare(module, lambda image: [spoil(x) for x in module(image)], SHAPES, 1e-3)


def test_a_missing_output_is_refused(module) -> None:
    with pytest.raises(CheckFailed, match="gives shapes"):
        compare(module, lambda image: module(image)[:1], SHAPES, 1e-3)
