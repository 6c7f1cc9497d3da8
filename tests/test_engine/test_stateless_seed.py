"""`StatelessSeedHook`: a step's draws depend on (seed, rank, iteration) and on nothing before."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader

from mmconvnextv2.datasets import StatelessDataset, StatelessInfiniteSampler, StatelessSampler
from mmconvnextv2.engine.hooks import stateless_seed
from mmconvnextv2.engine.hooks.portable_checkpoint import PortableCheckpointHook
from mmconvnextv2.engine.hooks.stateless_seed import StatelessSeedHook

pytestmark = pytest.mark.unit


def draw_from_all():
    return (random.random(), float(np.random.random()), float(torch.rand(())))


def draws_at(iteration, seed=5, drawn_before=0):
    for _ in range(drawn_before):
        draw_from_all()
    runner = SimpleNamespace(seed=seed, iter=iteration)
    StatelessSeedHook().before_train_iter(runner, batch_idx=0, data_batch={})
    return draw_from_all()


def test_draws_do_not_depend_on_the_draws_before():
    expected = [draws_at(i) for i in range(6)]
    assert [draws_at(i, drawn_before=i % 4) for i in reversed(range(6))] == expected[::-1]
    assert len(set(expected)) == 6


def test_draws_differ_by_seed_rank_and_iteration(monkeypatch):
    seen = []
    for rank in range(3):
        monkeypatch.setattr(stateless_seed, "get_rank", lambda rank=rank: rank)
        seen += [draws_at(iteration, seed) for seed in range(3) for iteration in range(3)]
    for generator in zip(*seen, strict=True):
        assert len(set(generator)) == 27


@pytest.mark.gpu
def test_draws_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    out = []
    for _ in range(2):
        torch.rand(7, device="cuda")
        draws_at(4)
        out.append(torch.rand(3, device="cuda"))
    assert torch.equal(*out)


class Numbers(BaseDataset):
    """Index and one draw of each generator: what an augmentation would be."""

    def load_data_list(self):
        return [{"number": i} for i in range(8)]

    def prepare_data(self, idx):
        return {"inputs": torch.tensor([idx, *draw_from_all()], dtype=torch.float64)}


class Recorder(BaseModel):
    """Writes down what each step is fed and what it draws itself, as masks and drop path would."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.record = []

    def forward(self, inputs, mode="tensor"):
        batch = torch.stack(list(inputs)).flatten().tolist()
        self.record.append((*batch, *draw_from_all()))
        return {"loss": self.weight * 1.0}


class Disturber(Hook):
    """Draws between steps, as logging and visualisation may."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for _ in range(batch_idx + 1):
            draw_from_all()


def run(work_dir, max_epochs=2, resume=False, num_workers=0, hooks=(), seed=5, **sampler):
    model = Recorder()
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=f"{work_dir.name}-{max_epochs}-{num_workers}-{resume}-{len(hooks)}",
        train_dataloader={
            "batch_size": 3,
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "dataset": StatelessDataset(Numbers()),
            "sampler": {"type": StatelessSampler, **sampler},
        },
        train_cfg={"by_epoch": True, "max_epochs": max_epochs},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={"logger": None, "checkpoint": {"type": "CheckpointHook", "interval": 1}},
        custom_hooks=[StatelessSeedHook(), PortableCheckpointHook(), *hooks],
        randomness={"seed": seed},
        resume=resume,
        log_level="ERROR",
    )
    runner.train()
    return model.record


@pytest.mark.integration
def test_a_run_does_not_depend_on_workers_disturbance_or_interruption(tmp_path):
    whole = run(tmp_path / "whole")
    assert len(whole) == 6
    # Same images in both epochs, other draws for each of them.
    assert len({row[-3:] for row in whole}) == 6
    assert run(tmp_path / "disturbed", num_workers=2, hooks=[Disturber()]) == whole
    first = run(tmp_path / "interrupted", max_epochs=1)
    rest = run(tmp_path / "interrupted", max_epochs=2, resume=True)
    assert first + rest == whole


def loader_with(sampler_type, dataset, **options):
    sampler = sampler_type(dataset, **options)
    return DataLoader(dataset, batch_size=2, sampler=sampler)


def test_registered_and_early():
    hook = HOOKS.build({"type": "StatelessSeedHook"})
    assert isinstance(hook, StatelessSeedHook)
    assert hook.priority == "VERY_HIGH"


def test_accepts_what_follows_the_run(tmp_path):
    dataset = StatelessDataset(Numbers())
    sampler = StatelessSampler(dataset, seed=5)
    by_batch = DataLoader(dataset, batch_sampler=BatchSampler(sampler, 2, drop_last=True))
    plain = loader_with(DefaultSampler, Numbers(), seed=1)
    for loader in (loader_with(StatelessSampler, dataset, seed=5), by_batch, plain):
        StatelessSeedHook().before_train(SimpleNamespace(train_dataloader=loader, seed=5))


@pytest.mark.parametrize("sampler_type", [DefaultSampler, InfiniteSampler])
def test_refuses_a_stateless_dataset_without_epochs(sampler_type):
    loader = loader_with(sampler_type, StatelessDataset(Numbers()), seed=5)
    with pytest.raises(ValueError, match=rf"{sampler_type.__name__}.*repeat the same augmentation"):
        StatelessSeedHook().before_train(SimpleNamespace(train_dataloader=loader, seed=5))


def test_refuses_a_stateless_sampler_of_another_dataset():
    loader = loader_with(StatelessSampler, Numbers(), seed=5)
    with pytest.raises(ValueError, match=r"Numbers.*StatelessDataset"):
        StatelessSeedHook().before_train(SimpleNamespace(train_dataloader=loader, seed=5))


def test_refuses_a_resume_under_another_seed():
    loader = loader_with(StatelessSampler, StatelessDataset(Numbers()), seed=6)
    with pytest.raises(ValueError, match=r"resumes with seed 5.*built with seed 6.*seed=5"):
        StatelessSeedHook().before_train(SimpleNamespace(train_dataloader=loader, seed=5))


def counting_by(loop_type, loader):
    return SimpleNamespace(train_dataloader=loader, seed=5, train_loop=loop_type.__new__(loop_type))


def test_the_endless_sampler_belongs_to_a_loop_that_counts_iterations():
    loader = loader_with(StatelessInfiniteSampler, StatelessDataset(Numbers()), seed=5)
    StatelessSeedHook().before_train(counting_by(IterBasedTrainLoop, loader))
    with pytest.raises(ValueError, match="never ends an epoch.*StatelessSampler"):
        StatelessSeedHook().before_train(counting_by(EpochBasedTrainLoop, loader))
    other_seed = loader_with(StatelessInfiniteSampler, StatelessDataset(Numbers()), seed=6)
    with pytest.raises(ValueError, match=r"resumes with seed 5.*built with seed 6"):
        StatelessSeedHook().before_train(counting_by(IterBasedTrainLoop, other_seed))
