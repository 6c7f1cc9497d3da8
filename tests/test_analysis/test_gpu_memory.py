"""Estimated memory: against torch's own partition, the profiler's count of a real step, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import distributed, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmconvnextv2.analysis.complexity import build_model
from mmconvnextv2.analysis.gpu_memory import (
    LiveMemory,
    activation_bytes,
    estimate_memory,
    largest_share,
)
from mmconvnextv2.benchmark.memory import peak_bytes
from mmconvnextv2.nn import VisibleCells, block, native, random_masking

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FCMAE = ROOT / "configs" / "fcmae"
HUGE = "fcmae_convnextv2-huge_64xb64-{}coslr-1600e_in1k.py"
BATCH = 4


def narrow(name: str, with_cp: bool | None = None) -> Config:
    """Huge, with eight blocks of 32 to 64 channels and pictures of 96 pixels."""
    config = Config.fromfile(FCMAE / name)
    config.model.backbone.arch = dict(depths=(2, 2, 2, 2), channels=(32, 32, 64, 64))
    config.model.neck.update(in_channels=64, num_channels=32)
    config.train_dataloader.dataset.dataset.pipeline[0].scale = 96
    config.train_dataloader.batch_size = BATCH
    if with_cp is not None:
        config.model.backbone.with_cp = with_cp
    return config


@pytest.mark.parametrize("processes", [2, 3, 8, 64])
def test_largest_share_is_torch_s(processes: int) -> None:
    generator = torch.Generator().manual_seed(processes)
    sizes = torch.randint(1, 400, (60,), generator=generator).tolist() + [3000]
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
        partition = ZeroRedundancyOptimizer(parameters, torch.optim.SGD)._partition_parameters()
    finally:
        distributed.destroy_process_group()
    shares = [sum(p.numel() for group in groups for p in group["params"]) for groups in partition]
    assert sum(shares) == sum(sizes)
    assert largest_share(sizes, processes) == max(shares)


def test_live_memory_by_hand() -> None:
    lasting = torch.ones(1000)
    with LiveMemory([lasting]) as memory:
        doubled = lasting * 2
        view = doubled.view(10, 100)
        assert memory.current == 4000, "views and what existed before cost nothing"
        lasting.add_(1)
        half = doubled.half()
        assert memory.current == 6000
        del doubled
        assert memory.current == 6000, "the view keeps it"
        del view
        assert memory.current == 2000
        summed = half.sum()
        assert (memory.current, memory.peak) == (2002, 6000)
    del half, summed


@pytest.fixture
def plain_operations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs on a GPU, run on the CPU: none of the forms that are written for a CPU."""
    for module in (block, native):
        monkeypatch.setattr(module, "is_eager_on_cpu", lambda x: False)
    yield


@pytest.mark.parametrize("with_cp", [False, True], ids=["kept", "checkpointing"])
def test_activations_are_what_the_profiler_counts(with_cp: bool, plain_operations: None) -> None:
    """A real step with real tensors, of which torch's profiler reports every allocation."""
    config = narrow(HUGE.format(""), with_cp)
    model = build_model(config).train()
    cells = VisibleCells.from_mask(random_masking(BATCH, (3, 3), 0.6))

    def step() -> None:
        model.loss(torch.randn(BATCH, 3, 96, 96), cells)["loss"].backward()

    step()  # gradients exist from here on
    measured = peak_bytes(step, torch.device("cpu"))
    assert activation_bytes(config, BATCH) == pytest.approx(measured, rel=0.05)


def test_checkpointing_and_shares_save_what_they_should() -> None:
    kept, again, shares = (
        estimate_memory(narrow(HUGE.format(kind)), processes=8) for kind in ("", "cp-", "cp-zero-")
    )
    model = build_model(narrow(HUGE.format("")))
    sizes = [p.numel() for p in model.parameters()]
    own = 4 * sum(sizes)
    buffers = 4 * sum(b.numel() for b in model.buffers())
    assert (kept.parameters, kept.gradients, kept.optimizer) == (own + buffers, 2 * own, 2 * own)
    assert (again.gradients, again.optimizer) == (own, 2 * own), "gradients lie in the buckets"
    assert again.activations < 0.6 * kept.activations
    assert (shares.gradients, shares.activations) == (again.gradients, again.activations)
    assert max(sizes) * 8 <= shares.optimizer <= 2 * own / 8 + 8 * max(sizes)
    assert shares.total == own + buffers + own + shares.optimizer + again.activations


def test_one_process_has_no_buckets_and_no_shares() -> None:
    memory = estimate_memory(narrow(HUGE.format("")), processes=1, batch=1)
    shared = estimate_memory(narrow(HUGE.format("cp-zero-")), processes=1, batch=1)
    assert memory.gradients == shared.gradients
    assert memory.optimizer == shared.optimizer


@pytest.mark.parametrize(("processes", "batch"), [(0, 1), (1, 0)])
def test_numbers_below_one_are_refused(processes: int, batch: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        estimate_memory(narrow(HUGE.format("")), processes, batch)


def test_another_model_is_refused() -> None:
    (path,) = (ROOT / "configs" / "convnextv2").glob("*_sample.py")
    with pytest.raises(ValueError, match="only steps of FCMAE .* ImageClassifier"):
        estimate_memory(Config.fromfile(path), 2)
