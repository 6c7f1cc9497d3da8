"""`StatelessInfiniteSampler`: epochs of the finite one in a row, by rank, and after a resume."""

from itertools import islice

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner

from mmconvnextv2.datasets import (
    SeededIndex,
    StatelessDataset,
    StatelessInfiniteSampler,
    StatelessSampler,
    samplers,
)
from mmconvnextv2.engine import StatelessSeedHook

pytestmark = pytest.mark.unit


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend to be one rank of several."""

    def pretend(rank, world_size):
        monkeypatch.setattr(samplers, "get_dist_info", lambda: (rank, world_size))

    return pretend


def taken(sampler, count):
    """The first indices, with their epochs, as plain numbers."""
    return [(int(index), index.epoch) for index in islice(sampler, count)]


def epochs_of_the_finite_sampler(length, seed, count, shuffle=True):
    """The reference: one epoch after the other of the sampler that ends."""
    sampler = StatelessSampler(range(length), seed=seed, shuffle=shuffle)
    rows = []
    epoch = 0
    while len(rows) < count:
        sampler.set_epoch(epoch)
        rows += [(int(index), epoch) for index in sampler]
        epoch += 1
    return rows[:count]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_is_the_finite_sampler_s_epochs_in_a_row(length, shuffle):
    sampler = StatelessInfiniteSampler(range(length), seed=3, shuffle=shuffle)
    assert taken(sampler, 30) == epochs_of_the_finite_sampler(length, 3, 30, shuffle)
    first = next(iter(sampler))
    assert isinstance(first, SeededIndex)
    assert first.seed == 3
    assert len(sampler) == length


def test_order_follows_the_seed_and_changes_with_the_epoch():
    rows = taken(StatelessInfiniteSampler(range(40), seed=1), 80)
    assert sorted(rows[:40]) == [(i, 0) for i in range(40)]
    assert sorted(rows[40:]) == [(i, 1) for i in range(40)]
    assert [i for i, _ in rows[:40]] != [i for i, _ in rows[40:]]
    assert taken(StatelessInfiniteSampler(range(40), seed=2), 40) != rows[:40]


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 9])
def test_ranks_deal_out_one_sequence(as_rank, world_size, length):
    whole = epochs_of_the_finite_sampler(length, 5, 20 * world_size)
    for rank in range(world_size):
        as_rank(rank, world_size)
        sampler = StatelessInfiniteSampler(range(length), seed=5)
        assert taken(sampler, 20) == whole[rank::world_size]


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("skipped", [0, 1, 6, 7, 8, 700_001])
def test_skip_starts_where_the_uninterrupted_run_would_be(as_rank, rank, world_size, skipped):
    as_rank(rank, world_size)
    sampler = StatelessInfiniteSampler(range(7), seed=5)
    expected = list(islice(sampler, skipped, skipped + 10)) if skipped < 1000 else None
    sampler.skip(skipped)
    rows = taken(sampler, 10)
    assert rows == taken(sampler, 10), "iterating again starts at the same place"
    position = rank + skipped * world_size
    assert rows[0][1] == position // 7
    if expected is not None:
        assert rows == [(int(index), index.epoch) for index in expected]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("epoch", "position"), [(0, 0), (0, 5), (0, 7), (2, 3), (1, 40)])
def test_starts_at_a_position_of_all_ranks_together(as_rank, world_size, epoch, position):
    whole = epochs_of_the_finite_sampler(7, 5, 200)
    for rank in range(world_size):
        as_rank(rank, world_size)
        sampler = StatelessInfiniteSampler(range(7), seed=5)
        sampler.start_at(epoch, position)
        start = 7 * epoch + position + rank
        assert taken(sampler, 20) == whole[start::world_size][:20]
    with pytest.raises(ValueError, match="at least 0, got -1, 0"):
        sampler.start_at(-1, 0)


def test_refuses_a_missing_seed_an_empty_dataset_and_a_negative_skip():
    with pytest.raises(ValueError, match=r"StatelessInfiniteSampler.*randomness=dict\(seed="):
        DATA_SAMPLERS.build({"type": "StatelessInfiniteSampler", "dataset": range(5)})
    with pytest.raises(ValueError, match="StatelessInfiniteSampler.*empty dataset"):
        StatelessInfiniteSampler([], seed=0)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        StatelessInfiniteSampler(range(5), seed=0).skip(-1)


class Numbers(BaseDataset):
    """Index and one draw: what an augmentation would be."""

    def load_data_list(self):
        return [{"number": i} for i in range(8)]

    def prepare_data(self, idx):
        return {"inputs": torch.tensor([idx, torch.rand(()).item()], dtype=torch.float64)}


class Recorder(BaseModel):
    """Writes down what each step is fed and what it draws itself."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.record = []

    def forward(self, inputs, mode="tensor"):
        batch = torch.stack(list(inputs)).flatten().tolist()
        self.record.append((*batch, torch.rand(()).item()))
        return {"loss": self.weight * 1.0}


class WithoutSkip(StatelessInfiniteSampler):
    """As classic mmengine sees it: a resume has to draw and throw away."""

    skip = property()


def run(work_dir, max_iters, resume=False, num_workers=0, sampler=StatelessInfiniteSampler):
    model = Recorder()
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=f"{work_dir.name}-{max_iters}-{num_workers}-{resume}",
        train_dataloader={
            "batch_size": 3,
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "dataset": StatelessDataset(Numbers()),
            "sampler": {"type": sampler},
        },
        train_cfg={"by_epoch": False, "max_iters": max_iters},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={
            "logger": None,
            "checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False},
        },
        custom_hooks=[StatelessSeedHook()],
        randomness={"seed": 5},
        resume=resume,
        log_level="ERROR",
    )
    runner.train()
    return model.record


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sampler", "num_workers"),
    [(StatelessInfiniteSampler, 0), (StatelessInfiniteSampler, 1), (WithoutSkip, 0)],
)
def test_a_resumed_run_sees_what_the_uninterrupted_one_would(tmp_path, sampler, num_workers):
    whole = run(tmp_path / "whole", 7, sampler=sampler)
    assert len(set(whole)) == 7
    assert len({row[1] for row in whole}) == 7, "an image is augmented anew in each epoch"
    first = run(tmp_path / "cut", 4, num_workers=num_workers, sampler=sampler)
    rest = run(tmp_path / "cut", 7, resume=True, num_workers=num_workers, sampler=sampler)
    assert first + rest == whole
