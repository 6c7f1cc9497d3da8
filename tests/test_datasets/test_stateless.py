"""Samples that depend on (seed, epoch, index) alone, whoever reads them and when."""

import copy
import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from mmconvnextv2.datasets import SeededIndex, StatelessDataset, StatelessSampler
from mmconvnextv2.seeding import Stream, derive_seed, seed_everything, seeded_cpu

pytestmark = pytest.mark.unit

LENGTH = 12


def draw_from_all():
    """Draw one number from each of the three global generators."""
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


class NoisyDataset(BaseDataset):
    """Each sample is its index and three draws, as an augmentation would make them."""

    METAINFO = {"classes": ("cat", "dog")}

    def load_data_list(self):
        return [{"number": i} for i in range(LENGTH)]

    def get_cat_ids(self, idx):
        return [idx % 2]

    def prepare_data(self, idx):
        info = self.get_data_info(idx)
        return torch.tensor([info["sample_idx"], *draw_from_all()], dtype=torch.float64)


def noisy(**options):
    return StatelessDataset(NoisyDataset(**options))


def collect(epochs, num_workers=0, persistent=False, batch_size=4, seed=7):
    """Read whole epochs through a loader: a tensor (LENGTH, 4), sorted by index, for each."""
    dataset = noisy()
    sampler = StatelessSampler(dataset, seed=seed)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=persistent,
    )
    out = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        rows = torch.cat(list(loader))
        out.append(rows[rows[:, 0].argsort()])
    return out


class TestDeriveSeed:
    def test_is_a_pure_function_within_63_bits(self):
        before = random.getstate(), torch.get_rng_state()
        seeds = [derive_seed(*parts) for parts in itertools.product(range(20), repeat=3)]
        assert len(set(seeds)) == 8000
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert seeds == [derive_seed(*parts) for parts in itertools.product(range(20), repeat=3)]
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])

    def test_neighbours_differ_in_half_of_the_bits(self):
        flips = [bin(derive_seed(0, i) ^ derive_seed(0, i + 1)).count("1") for i in range(500)]
        # 63 fair coins: mean 31.5; 500 of them put the mean within 0.6 (3.4 standard errors).
        assert abs(np.mean(flips) - 31.5) < 0.6

    def test_order_number_and_grouping_of_parts_matter(self):
        variants = [(1, 2), (2, 1), (12,), (1, 2, 0), (0, 1, 2), (-1, 2), (1, 22), (11, 2)]
        assert len({derive_seed(*parts) for parts in variants}) == len(variants)

    def test_streams_are_apart(self):
        assert derive_seed(0, Stream.SAMPLE, 0, 5) != derive_seed(0, Stream.STEP, 0, 5)

    def test_is_blake2b_of_the_decimal_numbers(self):
        # From `printf 1,2,3 | b2sum -l 64`, which prints the bytes in order.
        digest = bytes.fromhex("e2353910701f1c2a")
        assert derive_seed(1, 2, 3) == int.from_bytes(digest[::-1], "big") // 2

    def test_takes_integers_of_any_type_and_size(self):
        assert derive_seed(1, 2, 3) == derive_seed(np.int64(1), Stream.STEP, SeededIndex(3, 0, 0))
        assert derive_seed(2**70, -5) != derive_seed(2**70 + 1, -5)

    def test_refuses_what_is_no_integer(self):
        with pytest.raises(TypeError):
            derive_seed(1.5)
        with pytest.raises(ValueError, match="at least one"):
            derive_seed()


class TestSeeding:
    def test_seeds_all_three_generators(self):
        seed_everything(2**62 + 11)
        first = draw_from_all()
        seed_everything(2**62 + 11)
        assert draw_from_all() == first
        seed_everything(2**62 + 12)
        assert all(a != b for a, b in zip(draw_from_all(), first, strict=True))

    def test_python_and_numpy_use_the_high_word_of_the_seed(self):
        seed_everything(2**62 + 11)
        first = draw_from_all()[:2]
        seed_everything(2**61 + 11)
        assert all(a != b for a, b in zip(draw_from_all()[:2], first, strict=True))

    def test_block_restores_the_generators_even_after_an_error(self):
        seed_everything(3)
        expected = [draw_from_all(), draw_from_all()]
        seed_everything(3)
        first = draw_from_all()
        with pytest.raises(KeyError), seeded_cpu(99):
            inside = draw_from_all()
            raise KeyError
        assert [first, draw_from_all()] == expected
        seed_everything(99)
        assert inside == draw_from_all()


class TestSeededIndex:
    def test_is_an_index(self):
        index = SeededIndex(2, epoch=5, seed=9)
        assert index == 2
        assert ["a", "b", "c"][index] == "c"
        assert np.arange(10)[index] == 2
        assert torch.arange(10)[index] == 2
        assert {2: "x"}[index] == "x"
        assert type(index + 1) is int
        assert type(int(index)) is int
        assert repr(index) == "SeededIndex(2, epoch=5, seed=9)"

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_survives_pickling_and_copying(self, protocol):
        index = SeededIndex(2, epoch=5, seed=9)
        loaded = pickle.loads(pickle.dumps([index], protocol))[0]
        for other in (loaded, copy.copy(index), copy.deepcopy(index)):
            assert (int(other), other.epoch, other.seed) == (2, 5, 9)


class TestStatelessDataset:
    def test_delegates(self):
        dataset = StatelessDataset(NoisyDataset(lazy_init=True))
        dataset.full_init()
        assert len(dataset) == LENGTH
        assert dataset.metainfo == {"classes": ("cat", "dog")}
        assert dataset.get_cat_ids(SeededIndex(3, 1, 1)) == [1]
        info = dataset.get_data_info(SeededIndex(3, 1, 1))
        assert info == {"number": 3, "sample_idx": 3}
        assert type(info["sample_idx"]) is int

    def test_builds_its_inner_dataset_from_a_config(self, tmp_path):
        from PIL import Image

        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        inner = {"type": "ImageFolder", "data_root": str(tmp_path)}
        dataset = DATASETS.build({"type": "StatelessDataset", "dataset": inner})
        assert dataset[0]["img_path"] == str(tmp_path / "a.png")

    def test_wraps_wrappers_and_refuses_other_things(self):
        both = StatelessDataset(ConcatDataset([NoisyDataset(), NoisyDataset()]))
        assert len(both) == 2 * LENGTH
        with pytest.raises(TypeError, match="got list, which has no metainfo, full_init"):
            StatelessDataset([1, 2, 3])

    def test_a_sample_is_a_function_of_seed_epoch_and_index(self):
        dataset = noisy()
        draws = {
            (seed, epoch, i): tuple(dataset[SeededIndex(i, epoch, seed)][1:].tolist())
            for seed, epoch, i in itertools.product(range(3), range(3), range(LENGTH))
        }
        assert len(set(draws.values())) == len(draws)
        for (seed, epoch, i), expected in reversed(draws.items()):
            assert tuple(dataset[SeededIndex(i, epoch, seed)][1:].tolist()) == expected

    def test_a_sample_equals_the_inner_one_under_the_derived_seed(self):
        expected = NoisyDataset()
        seed_everything(derive_seed(7, Stream.SAMPLE, 3, 5))
        assert torch.equal(noisy()[SeededIndex(5, epoch=3, seed=7)], expected[5])

    def test_the_inner_dataset_sees_a_plain_integer(self, monkeypatch):
        inner = NoisyDataset()
        seen = []
        monkeypatch.setattr(inner, "prepare_data", lambda idx: seen.append(idx) or {})
        StatelessDataset(inner)[SeededIndex(5, epoch=3, seed=7)]
        assert [(type(idx), idx) for idx in seen] == [(int, 5)]

    def test_a_plain_integer_is_epoch_0_of_seed_0(self):
        dataset = noisy()
        assert torch.equal(dataset[4], dataset[4])
        assert torch.equal(dataset[4], dataset[SeededIndex(4, 0, 0)])

    def test_reading_leaves_the_process_generators_alone(self):
        seed_everything(1)
        expected = draw_from_all()
        seed_everything(1)
        noisy()[SeededIndex(0, 0, 0)]
        assert draw_from_all() == expected


class TestLoader:
    @pytest.mark.parametrize(
        ("num_workers", "persistent", "batch_size"),
        [(0, False, 1), (0, False, 5), (1, False, 4), (2, False, 4), (2, True, 3)],
    )
    def test_samples_do_not_depend_on_the_loader(self, num_workers, persistent, batch_size):
        dataset = noisy()
        expected = [
            torch.stack([dataset[SeededIndex(i, epoch, 7)] for i in range(LENGTH)])
            for epoch in range(3)
        ]
        random.seed(num_workers)
        got = collect(range(3), num_workers, persistent, batch_size)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(got[0], got[1])

    @pytest.mark.parametrize("persistent", [False, True])
    def test_starting_at_epoch_3_equals_reaching_it(self, persistent):
        reached = collect(range(5), num_workers=2, persistent=persistent)[3:]
        started = collect(range(3, 5), num_workers=2, persistent=persistent)
        for a, b in zip(reached, started, strict=True):
            assert torch.equal(a, b)

    def test_other_seed_other_samples(self):
        assert not torch.equal(collect([0], seed=7)[0], collect([0], seed=8)[0])
