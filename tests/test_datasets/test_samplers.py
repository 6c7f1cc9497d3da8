"""`StatelessSampler`: its order, its split over ranks, and how mmengine's Runner builds it."""

from collections import Counter

import mmengine.dataset.sampler
import pytest
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner

from mmconvnextv2.datasets import SeededIndex, StatelessDataset, StatelessSampler

pytestmark = pytest.mark.unit


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend to be one rank of several."""

    def pretend(rank, world_size):
        monkeypatch.setattr(mmengine.dataset.sampler, "get_dist_info", lambda: (rank, world_size))

    return pretend


def test_yields_every_index_once_with_epoch_and_seed():
    sampler = StatelessSampler(range(50), seed=3)
    sampler.set_epoch(4)
    indices = list(sampler)
    assert sorted(indices) == list(range(50))
    assert indices != sorted(indices)
    assert all(isinstance(index, SeededIndex) for index in indices)
    assert {(index.epoch, index.seed) for index in indices} == {(4, 3)}
    assert len(sampler) == 50


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = StatelessSampler(range(50), seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    # DefaultSampler adds the two, so that its epoch 1 of seed 0 is epoch 0 of seed 1.
    assert len(set(orders.values())) == 16
    assert order(2, 3) == orders[2, 3]


def test_without_shuffling():
    sampler = StatelessSampler(range(5), seed=3, shuffle=False)
    sampler.set_epoch(2)
    indices = list(sampler)
    assert indices == [0, 1, 2, 3, 4]
    assert indices[0].epoch == 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 2, 5, 24, 25])
@pytest.mark.parametrize("round_up", [True, False])
def test_ranks_together_cover_everything(as_rank, world_size, length, round_up):
    shares = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        sampler = StatelessSampler(range(length), seed=1, round_up=round_up)
        share = list(sampler)
        assert len(share) == len(sampler)
        shares.append(share)
    counts = Counter(int(index) for share in shares for index in share)
    assert set(counts) == set(range(length))
    if round_up:
        assert len({len(share) for share in shares}) == 1
        assert max(counts.values()) - min(counts.values()) <= 1
    else:
        assert set(counts.values()) == {1}


@pytest.mark.parametrize("round_up", [True, False])
def test_split_is_that_of_default_sampler(as_rank, round_up):
    for rank in range(4):
        as_rank(rank, 4)
        options = {"shuffle": False, "seed": 0, "round_up": round_up}
        ours, theirs = StatelessSampler(range(10), **options), DefaultSampler(range(10), **options)
        assert list(ours) == list(theirs)


@pytest.mark.parametrize("round_up", [True, False])
@pytest.mark.parametrize("now", [1, 2, 3, 8])
@pytest.mark.parametrize("before", [1, 2, 4])
def test_what_is_left_of_an_epoch_goes_to_any_number_of_ranks(as_rank, before, now, round_up):
    def share(rank, world_size, position=0, epoch=4):
        as_rank(rank, world_size)
        sampler = StatelessSampler(range(25), seed=1, round_up=round_up)
        sampler.start_at(4, position)
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert epoch != 4 or len(indices) == sampler.count_from(position)
        assert indices == list(sampler), "iterating again starts at the same place"
        return indices

    order = share(0, 1)
    for batches in range(14):
        position = 2 * batches * before
        shares = [share(rank, now, position) for rank in range(now)]
        counts = Counter(int(index) for part in shares for index in part)
        assert set(counts) >= set(order[position:])
        assert {index.epoch for part in shares for index in part} <= {4}
        if round_up:
            assert len({len(part) for part in shares}) == 1
            assert sum(counts.values()) - len(order[position:]) in range(now)
        else:
            assert counts == Counter(order[position:])
        if now == before:
            assert shares == [share(rank, now)[2 * batches :] for rank in range(now)]
        assert share(0, now, position, epoch=5) == share(0, now, epoch=5), "other epochs are whole"


def test_refuses_a_start_before_the_beginning():
    with pytest.raises(ValueError, match="at least 0, got 0, -1"):
        StatelessSampler(range(5), seed=0).start_at(0, -1)


def test_refuses_a_missing_seed_and_an_empty_dataset():
    with pytest.raises(ValueError, match=r"randomness=dict\(seed="):
        DATA_SAMPLERS.build({"type": "StatelessSampler", "dataset": range(5)})
    with pytest.raises(ValueError, match="empty dataset"):
        StatelessSampler([], seed=0)


def test_runner_builds_it_with_the_run_s_seed(tmp_path):
    from PIL import Image

    for i in range(5):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    folder = {"type": "ImageFolder", "data_root": str(tmp_path)}
    loader = Runner.build_dataloader(
        {
            "batch_size": 2,
            "num_workers": 0,
            "dataset": {"type": "StatelessDataset", "dataset": folder},
            "sampler": {"type": "StatelessSampler", "shuffle": True},
        },
        seed=11,
    )
    assert isinstance(loader.dataset, StatelessDataset)
    assert loader.sampler.seed == 11
    paths = [path for batch in loader for path in batch["img_path"]]
    assert sorted(paths) == [str(tmp_path / f"{i}.png") for i in range(5)]
