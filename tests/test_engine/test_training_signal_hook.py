"""`TrainingSignalHook` in real runs: record, picture, warning, summary, resume."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from PIL import Image

import mmconvnextv2.datasets  # noqa: F401  (registers)
import mmconvnextv2.engine  # noqa: F401  (registers)
from mmconvnextv2.datasets.split_image_folder import SplitImageFolder  # noqa: F401  (registers)
from mmconvnextv2.engine.hooks.training_signal import TrainingSignalHook
from mmconvnextv2.models import FCMAE

pytestmark = pytest.mark.integration

STEPS_PER_EPOCH = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(24):
        small = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(small).resize((72, 64)).save(root / f"{i:02d}.png")
    return root


def make_model(tiny_arch: dict) -> FCMAE:
    torch.manual_seed(1)
    return FCMAE(
        data_preprocessor=dict(type="FCMAEDataPreprocessor", mask_ratio=0.5),
        backbone=dict(
            type="ConvNeXtV2", arch=tiny_arch, gap_before_final_norm=False, output_norms=False
        ),
        neck=dict(type="FCMAEDecoder", in_channels=tiny_arch["channels"][-1], num_channels=16),
    )


class KeepLosses(Hook):
    """The loss of every step, by iteration."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses[runner.iter + 1] = outputs["loss"].item()


class Collapse(Hook):
    """Makes the encoder forget its images at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def after_train_epoch(self, runner) -> None:
        if runner.epoch + 1 >= self.epoch:
            with torch.no_grad():
                runner.model.backbone.downsample_layers[-1][1].weight.zero_()
                runner.model.backbone.downsample_layers[-1][1].bias.fill_(1.0)


def make_runner(
    work_dir: Path,
    folder: Path,
    model: FCMAE,
    *hooks: Hook | dict,
    epochs: int = 4,
    resume: bool = False,
    iterations: int | None = None,
    **changes: Any,
) -> Runner:
    def images(part: str) -> dict:
        inner = dict(
            type="SplitImageFolder",
            data_root=str(folder),
            part=part,
            held_out_share=0.4,
            pipeline=[
                dict(type="LoadRandomResizedCrop", scale=64),
                dict(type="PackInputs"),
            ],
        )
        return dict(type="StatelessDataset", dataset=inner)

    collate = dict(type="default_collate")
    endless = iterations is not None
    settings = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=images("train"),
            batch_size=4,
            sampler=dict(type="StatelessInfiniteSampler" if endless else "StatelessSampler"),
            drop_last=True,
            collate_fn=collate,
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=4)
        if endless
        else dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=3e-3)),
        val_dataloader=dict(
            dataset=images("held_out"),
            batch_size=4,
            sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
            collate_fn=collate,
        ),
        val_cfg=dict(type="HeldOutLoop"),
        val_evaluator=[],
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", interval=1, save_best="held_out_loss")
        ),
        custom_hooks=[
            dict(type="StatelessSeedHook"),
            dict(type="PortableCheckpointHook"),
            TrainingSignalHook(),
            *hooks,
        ],
        randomness=dict(seed=0),
        default_scope="mmpretrain",
        experiment_name=f"signal-{work_dir.name}-{id(model)}",
        resume=resume,
    )
    settings.update(changes)
    return Runner(**settings)


def read(work_dir: Path) -> dict:
    return json.loads((work_dir / "training_signal.json").read_text())


def log_of(work_dir: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(work_dir.glob("*/*.log")))


def test_a_run_leaves_record_picture_and_summary(
    tmp_path: Path, folder: Path, tiny_arch: dict
) -> None:
    losses = KeepLosses()
    runner = make_runner(tmp_path, folder, make_model(tiny_arch), losses)
    runner.train()
    per_epoch = len(runner.train_dataloader)
    content = read(tmp_path)
    records = content["records"]
    assert [record["step"] for record in records] == [per_epoch * epoch for epoch in range(5)]
    assert "train_loss" not in records[0]
    for epoch, record in enumerate(records[1:]):
        steps = range(per_epoch * epoch + 1, per_epoch * (epoch + 1) + 1)
        assert record["train_loss"] == pytest.approx(np.mean([losses.losses[s] for s in steps]))
    assert records[-1]["held_out_loss"] < records[0]["held_out_loss"]
    assert content["num_images"] == len(runner.val_dataloader.dataset)
    assert content["summary"]["collapse"] == []
    log = log_of(tmp_path)
    assert all(line in log for line in content["summary"]["lines"])
    assert "No sign of collapsed features" in log and "the features collapse" not in log
    width, height = Image.open(tmp_path / "training_signal.png").size
    assert width > 1000 and height > 300
    # The figures are also where mmengine's own hooks look for them.
    assert runner.message_hub.get_scalar("val/held_out_loss").current() == pytest.approx(
        records[-1]["held_out_loss"]
    )
    assert list(tmp_path.glob("best_held_out_loss_epoch_*.pth"))


def test_a_resumed_run_has_the_record_of_the_whole_one(
    tmp_path: Path, folder: Path, tiny_arch: dict
) -> None:
    make_runner(tmp_path, folder, make_model(tiny_arch)).train()
    whole = read(tmp_path)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    runner = make_runner(tmp_path, folder, make_model(tiny_arch), resume=True)
    runner.train()
    assert read(tmp_path) == whole


def test_a_validation_that_was_cut_off_leaves_no_gap(
    tmp_path: Path, folder: Path, tiny_arch: dict
) -> None:
    class CutOff(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
            if runner.epoch == 2:
                raise KeyboardInterrupt

    def make(name: str, *hooks: Hook, resume: bool = False) -> Runner:
        loop = dict(type="ResumableEpochLoop", max_epochs=4)
        model = make_model(tiny_arch)
        return make_runner(tmp_path / name, folder, model, *hooks, resume=resume, train_cfg=loop)

    make("whole").train()
    whole = read(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make("cut", CutOff()).train()
    assert read(tmp_path / "cut")["records"] == whole["records"][:2]
    make("cut", resume=True).train()
    assert read(tmp_path / "cut") == whole
    # One that was not cut off takes the place of its record when it is made again.
    (tmp_path / "cut" / "last_checkpoint").write_text(str(tmp_path / "cut" / "epoch_2.pth"))
    make("cut", resume=True).train()
    assert read(tmp_path / "cut") == whole


def test_a_new_run_in_the_same_folder_starts_a_new_record(
    tmp_path: Path, folder: Path, tiny_arch: dict
) -> None:
    for epochs in (3, 1):
        make_runner(tmp_path, folder, make_model(tiny_arch), epochs=epochs).train()
        assert len(read(tmp_path)["records"]) == epochs + 1


def test_a_collapse_is_warned_of_once_and_summed_up(
    tmp_path: Path, folder: Path, tiny_arch: dict
) -> None:
    make_runner(tmp_path, folder, make_model(tiny_arch), Collapse(epoch=2)).train()
    log = log_of(tmp_path)
    assert log.count("the features collapse: ") == 1
    assert "COLLAPSED FEATURES" in log and "No sign of collapsed features" not in log
    warning = next(line for line in log.splitlines() if "the features collapse: " in line)
    assert logging.getLevelName(logging.WARNING) in warning
    assert read(tmp_path)["summary"]["collapse"]


def test_the_warning_comes_again_after_a_recovery(tmp_path: Path) -> None:
    """The Runner's logger drops equal warnings by itself; these differ in their numbers."""
    warnings: list[str] = []
    runner = SimpleNamespace(
        iter=0,
        epoch=0,
        work_dir=tmp_path,
        logger=SimpleNamespace(warning=warnings.append),
        val_dataloader=SimpleNamespace(dataset=range(30)),
        val_loop=SimpleNamespace(seed=0),
        message_hub=SimpleNamespace(get_scalar=lambda name: HistoryBuffer([0.9], [1])),
    )
    hook = TrainingSignalHook()
    healthy = {f"feature_diversity_stage{stage}": 0.45 for stage in (1, 2, 3, 4)}
    for rank in (20.0, 5.0, 4.0, 19.0, 18.0, 3.0):
        runner.iter += 1
        hook.after_val_epoch(runner, dict(held_out_loss=0.9, effective_rank=rank, **healthy))
    assert ["5.00" in warnings[0], "3.00" in warnings[1], len(warnings)] == [True, True, 2]


def test_loops_of_iterations_and_no_validation_before(
    tmp_path: Path, folder: Path, tiny_arch: dict
) -> None:
    hooks = [dict(type="StatelessSeedHook"), TrainingSignalHook(validate_first=False)]
    runner = make_runner(tmp_path, folder, make_model(tiny_arch), iterations=9, custom_hooks=hooks)
    runner.train()
    steps = [record["step"] for record in read(tmp_path)["records"]]
    assert steps == [4, 8, 9]


def test_early_stopping_reads_the_figure(tmp_path: Path, folder: Path, tiny_arch: dict) -> None:
    stop = dict(
        type="EarlyStoppingHook", monitor="held_out_loss", rule="less", min_delta=10.0, patience=2
    )
    make_runner(tmp_path, folder, make_model(tiny_arch), stop, epochs=6).train()
    content = read(tmp_path)
    # No validation improves by 10: the first two after the one before training use up the patience.
    assert len(content["records"]) == 3
    assert content["summary"]["trend"] == "unknown"


def test_a_run_that_diverges_says_so(tmp_path: Path, folder: Path, tiny_arch: dict) -> None:
    class Break(Hook):
        def after_train_epoch(self, runner) -> None:
            if runner.epoch == 1:
                runner.model.backbone.downsample_layers[0][0].weight.data.fill_(math.nan)

    make_runner(tmp_path, folder, make_model(tiny_arch), Break(), epochs=3).train()
    assert "training has diverged" in log_of(tmp_path)
    assert (tmp_path / "training_signal.png").exists()


def test_another_validation_loop_is_refused(tmp_path: Path, folder: Path, tiny_arch: dict) -> None:
    runner = make_runner(
        tmp_path,
        folder,
        make_model(tiny_arch),
        val_cfg=None,
        val_evaluator=None,
        val_dataloader=None,
    )
    with pytest.raises(TypeError, match="set val_cfg=dict"):
        runner.train()
