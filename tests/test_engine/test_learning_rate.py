"""Linear scaling against numbers worked out by hand, and what the hook says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from mmconvnextv2.engine import LearningRateTermsHook
from mmconvnextv2.engine.learning_rate import BatchTerms, batch_terms, scale_learning_rate

pytestmark = pytest.mark.unit


def make_config(lr: float = 2.4e-3, batch: int = 64, base: int = 4096, **wrapper: int) -> Config:
    """A config with the keys that scaling reads: the official rate 1.5e-4 x 4096 / 256."""
    return Config(
        dict(
            train_dataloader=dict(batch_size=batch),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=lr), **wrapper),
            auto_scale_lr=dict(base_batch_size=base),
        )
    )


@pytest.mark.parametrize(
    ("world_size", "batch", "accumulation", "rate"),
    [
        (64, 64, 1, 2.4e-3),  # 4096 images: the rate as it stands
        (1, 64, 1, 3.75e-5),  # 64 of 4096
        (8, 64, 1, 3e-4),  # 512 of 4096
        (8, 64, 8, 2.4e-3),  # 4096 again, by accumulation
        (2, 32, 4, 1.5e-4),  # 256 images: the base rate of the paper
        (16, 128, 4, 4.8e-3),  # 8192: more than the base
    ],
)
def test_rate_is_linear_in_everything_that_makes_the_batch(world_size, batch, accumulation, rate):
    cfg = make_config(batch=batch, accumulative_counts=accumulation)
    factor = scale_learning_rate(cfg, world_size)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(rate)
    assert factor == pytest.approx(rate / 2.4e-3)
    assert cfg.auto_scale_lr.scaled_by == factor
    assert cfg.auto_scale_lr.enable is False  # or mmengine would scale once more


def test_a_scaled_config_is_scaled_from_its_original_rate():
    cfg = make_config()
    scale_learning_rate(cfg, 8)
    scale_learning_rate(cfg, 8)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(3e-4)
    scale_learning_rate(cfg, 16)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(6e-4)


def test_the_batch_size_may_stand_in_the_batch_sampler():
    cfg = make_config()
    cfg.train_dataloader = dict(batch_sampler=dict(type="AspectRatioBatchSampler", batch_size=4))
    assert batch_terms(cfg, 3) == BatchTerms(world_size=3, per_device=4, accumulation=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(auto_scale_lr=None), "auto_scale_lr.base_batch_size"),
        (dict(auto_scale_lr=dict(enable=True)), "auto_scale_lr.base_batch_size"),
        (dict(train_dataloader=dict(num_workers=2)), "train_dataloader.batch_size"),
        (dict(optim_wrapper=dict(optimizer=dict(type="AdamW"))), "optimizer.lr"),
    ],
)
def test_what_the_config_lacks_is_named_and_nothing_changes(change, words):
    cfg = make_config()
    for key, value in change.items():
        cfg[key] = value
    before = cfg.to_dict()
    with pytest.raises(ValueError, match=words):
        scale_learning_rate(cfg, 2)
    assert cfg.to_dict() == before


class LineLogger:
    """Keeps what a logger is told."""

    def __init__(self) -> None:
        self.infos: list[str] = []
        self.warnings: list[str] = []

    def info(self, line: str) -> None:
        self.infos.append(line)

    def warning(self, line: str) -> None:
        self.warnings.append(line)


def lines_of_the_hook(cfg: Config, world_size: int, *rates: float) -> LineLogger:
    """Run the hook with an optimizer of one group per rate."""
    groups = [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=rate) for rate in rates]
    wrapper = OptimWrapper(torch.optim.AdamW(groups, lr=1.0))
    runner = SimpleNamespace(
        cfg=cfg, world_size=world_size, optim_wrapper=wrapper, logger=LineLogger()
    )
    HOOKS.build(dict(type="LearningRateTermsHook")).before_train(runner)
    return runner.logger


def test_hook_is_in_the_root_registry():
    assert HOOKS.get("LearningRateTermsHook") is LearningRateTermsHook


def test_hook_prints_every_term_once_and_is_quiet_when_they_agree():
    log = lines_of_the_hook(make_config(accumulative_counts=8), 8, 2.4e-3)
    assert log.warnings == []
    (line,) = log.infos
    for term in (
        "learning rate 0.0024 ",
        "base batch 4096",
        "8 (proc",
        "64 (im",
        "8 (acc",
        "= 4096",
    ):
        assert term in line


def test_hook_says_the_span_of_several_rates():
    (line,) = lines_of_the_hook(make_config(), 64, 1e-5, 2e-5, 1e-3).infos
    assert "1e-05 to 0.001 in 3 parameter groups" in line


def test_hook_reports_the_rate_before_warmup():
    groups_rate = 1e-3
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=groups_rate)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    runner = SimpleNamespace(
        cfg=make_config(), world_size=64, optim_wrapper=OptimWrapper(optimizer), logger=LineLogger()
    )
    LearningRateTermsHook().before_train(runner)
    assert "learning rate 0.001 " in runner.logger.infos[0]


def test_hook_warns_when_the_batch_is_another_and_names_the_remedy():
    log = lines_of_the_hook(make_config(), 1, 2.4e-3)
    (line,) = log.warnings
    assert "--auto-scale-lr" in line
    assert "4096 images" in line and "has 64" in line and "0.015625" in line


def test_hook_is_quiet_after_scaling_and_warns_when_the_scale_is_of_another_run():
    cfg = make_config()
    scale_learning_rate(cfg, 8)
    assert lines_of_the_hook(cfg, 8, 3e-4).warnings == []
    assert len(lines_of_the_hook(cfg, 4, 3e-4).warnings) == 1


def test_hook_does_not_warn_where_no_base_batch_is_stated():
    cfg = make_config()
    cfg.auto_scale_lr = None
    log = lines_of_the_hook(cfg, 1, 1e-3)
    assert log.warnings == []
    assert "base batch not stated" in log.infos[0]
