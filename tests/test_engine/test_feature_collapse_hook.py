"""`FeatureCollapseHook` in real runs: figures, one warning a stage, training left as it was."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset

import mmconvnextv2.engine  # noqa: F401  (registers)
from mmconvnextv2.engine.hooks.feature_collapse import FeatureCollapseHook
from mmconvnextv2.models import FCMAE

pytestmark = pytest.mark.integration


class Noise(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict:
        generator = torch.Generator().manual_seed(i)
        return dict(inputs=torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8))


def make_model(tiny_arch: dict) -> FCMAE:
    torch.manual_seed(1)
    return FCMAE(
        data_preprocessor=dict(type="FCMAEDataPreprocessor", mask_ratio=0.5),
        backbone=dict(
            type="ConvNeXtV2", arch=tiny_arch, gap_before_final_norm=False, output_norms=False
        ),
        neck=dict(type="FCMAEDecoder", in_channels=tiny_arch["channels"][-1], num_channels=16),
    )


class KeepWarnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def train(
    work_dir: Path, model: torch.nn.Module, *hooks: Hook, iters: int = 5
) -> tuple[Runner, list[str]]:
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Noise(),
            batch_size=4,
            sampler=dict(type="InfiniteSampler", shuffle=False),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-3)),
        custom_hooks=list(hooks),
        default_hooks=dict(checkpoint=None),
        randomness=dict(seed=0),
        default_scope="mmpretrain",
        experiment_name=f"collapse-{work_dir.name}-{id(model)}",
    )
    warnings = KeepWarnings()
    runner.logger.addHandler(warnings)
    runner.train()
    return runner, warnings.messages


def figures(runner: Runner, stage: int) -> list[float]:
    scalars = runner.message_hub.get_scalar(f"train/feature_diversity_stage{stage}")
    return scalars.data[0].tolist()


def test_a_collapsed_stage_is_warned_of_once(tmp_path: Path, tiny_arch: dict) -> None:
    model = make_model(tiny_arch)
    with torch.no_grad():
        for block in model.backbone.stages[2]:
            for parameter in block.pointwise_conv1.parameters():
                parameter.copy_(parameter[:1].expand_as(parameter))
    runner, warnings = train(tmp_path, model, FeatureCollapseHook(interval=2))
    (warning,) = [message for message in warnings if "the features collapse" in message]
    assert "stage 3 is 0.000 at iteration 2, below 0.35" in warning
    assert [len(figures(runner, stage)) for stage in (1, 2, 3, 4)] == [2, 2, 2, 2]
    assert figures(runner, 3) == pytest.approx([0, 0], abs=1e-3)
    assert min(figures(runner, 1) + figures(runner, 2) + figures(runner, 4)) > 0.4


def test_training_is_the_same_with_and_without(tmp_path: Path, tiny_arch: dict) -> None:
    results = []
    for hooks in ((), (FeatureCollapseHook(interval=1, num_images=2),)):
        model = make_model(tiny_arch)
        _, warnings = train(tmp_path / str(len(hooks)), model, *hooks, iters=3)
        assert model.training and not [m for m in warnings if "collapse" in m]
        draws = random.random(), np.random.rand(), torch.rand(()).item()
        results.append((draws, model.state_dict()))
    assert results[0][0] == results[1][0]
    for name, tensor in results[0][1].items():
        assert torch.equal(tensor, results[1][1][name]), name


@pytest.mark.parametrize(
    "arguments", [dict(interval=0), dict(num_images=0), dict(threshold=0.5), dict(threshold=0)]
)
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FeatureCollapseHook(**arguments)


def test_a_backbone_without_known_blocks_is_refused_before_training() -> None:
    class Strange(torch.nn.Module):
        backbone = torch.nn.Linear(2, 2)

    runner = type("FakeRunner", (), dict(model=Strange()))
    with pytest.raises(TypeError, match="blocks of a Linear are not known"):
        FeatureCollapseHook().before_train(runner)
