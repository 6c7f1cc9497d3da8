"""Drawing masks and planning visible cells: counts, seeds, uniformity, bad input."""

from __future__ import annotations

import pytest
import torch

from mmconvnextv2.nn import VisibleCells, random_masking

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("grid_hw", "ratio", "visible"),
    [
        ((7, 7), 0.6, 19),
        ((5, 5), 0.6, 10),
        ((2, 3), 0.5, 3),
        ((12, 12), 0.75, 36),
        ((1, 2), 0.5, 1),
    ],
)
def test_every_image_keeps_the_stated_number_of_cells(grid_hw, ratio, visible):
    mask_NHW = random_masking(16, grid_hw, ratio)
    assert mask_NHW.shape == (16, *grid_hw)
    assert mask_NHW.dtype == torch.bool
    assert ((~mask_NHW).flatten(1).sum(1) == visible).all()


def test_the_keep_count_is_rounded_down():
    for cells in range(2, 60):
        for ratio in (0.1, 0.25, 0.6, 0.75, 0.9):
            keep = int(cells * (1 - ratio))
            if keep:
                mask_NHW = random_masking(1, (1, cells), ratio)
                assert (~mask_NHW).sum().item() == keep, (cells, ratio)


def test_one_seed_gives_one_mask_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    draws = [
        random_masking(4, (7, 7), 0.6, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.get_rng_state())


def test_the_global_generator_is_the_default():
    torch.manual_seed(2)
    first = random_masking(4, (7, 7), 0.6)
    torch.manual_seed(2)
    assert torch.equal(first, random_masking(4, (7, 7), 0.6))


def test_cells_are_removed_uniformly_and_differently_for_each_image():
    """4000 draws of 30 of 49: each frequency within 5 standard deviations of 30 / 49."""
    images, removed = 4000, 30 / 49
    generator = torch.Generator().manual_seed(0)
    mask_NL = random_masking(images, (7, 7), 0.6, generator=generator).flatten(1).double()
    deviation = (removed * (1 - removed) / images) ** 0.5
    assert (mask_NL.mean(0) - removed).abs().max() < 5 * deviation
    assert len(torch.unique(mask_NL, dim=0)) == images


@pytest.mark.parametrize(
    ("grid_hw", "scale", "visible"), [((8, 12), 2, 9), ((12, 12), 4, 3), ((6, 3), 3, 1)]
)
def test_larger_cells_are_a_coarser_draw(grid_hw, scale, visible):
    ratio = 0.5 if scale == 3 else 0.6
    mask_NHW = random_masking(5, grid_hw, ratio, cell_scale=scale)
    assert mask_NHW.shape == (5, *grid_hw)
    for mask_HW in mask_NHW:
        squares = [
            mask_HW[y : y + scale, x : x + scale]
            for y in range(0, grid_hw[0], scale)
            for x in range(0, grid_hw[1], scale)
        ]
        assert all(square.all() or not square.any() for square in squares)
        assert sum(not square.any() for square in squares) == visible


BAD = {
    "zero": (dict(mask_ratio=0.0), "0"),
    "one": (dict(mask_ratio=1.0), "1"),
    "negative": (dict(mask_ratio=-0.3), r"-0\.3"),
    "above one": (dict(mask_ratio=1.6), r"1\.6"),
    "not a number": (dict(mask_ratio=float("nan")), "nan"),
    "nothing visible": (dict(grid_hw=(2, 2), mask_ratio=0.9), r"0\.9"),
    "nothing removed": (dict(grid_hw=(1, 1), mask_ratio=1e-17), "1e-17"),
    "grid not a multiple of the scale": (dict(cell_scale=2), "7x7|7, 7"),
    "scale of zero": (dict(cell_scale=0), "0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    arguments, message = BAD[case]
    full = dict(grid_hw=(7, 7), mask_ratio=0.6, cell_scale=1) | arguments
    with pytest.raises(ValueError, match=message):
        random_masking(2, full["grid_hw"], full["mask_ratio"], cell_scale=full["cell_scale"])


def test_one_cell_of_two_at_any_middling_ratio_is_allowed():
    """A ratio is refused for what it leaves, not for its size: here 1 of 10 cells stays."""
    assert (~random_masking(3, (2, 5), 0.85)).flatten(1).sum(1).tolist() == [1, 1, 1]


def test_a_plan_counts_visible_cells(random_mask):
    mask_NHW = random_mask([3, 1, 6], (2, 3))
    plan = VisibleCells.from_mask(mask_NHW)
    assert list(plan.counts) == [3, 1, 6]
    assert plan.num_images == 3
    assert plan.num_visible == 10
    assert plan.equal_count is None
    assert torch.equal(plan.mask_NHW, mask_NHW)
    assert VisibleCells.from_mask(random_mask([4, 4], (2, 3))).equal_count == 4


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 2, 2), "float32"),
        (torch.zeros(2, 2, dtype=torch.bool), "2, 2"),
        (torch.ones(2, 2, 2, dtype=torch.bool), "(?i)visible"),
    ],
)
def test_a_plan_refuses_bad_masks(mask, message):
    with pytest.raises(ValueError, match=message):
        VisibleCells.from_mask(mask)
