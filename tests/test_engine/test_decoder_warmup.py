"""The encoder stays during the decoder's warm-up, moves at its rates afterwards, and resumes so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor

from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.engine import LayerDecayOptimWrapperConstructor
from mmconvnextv2.engine.hooks.decoder_warmup import DecoderWarmupHook
from mmconvnextv2.nn import FCMAE, ConvNeXtV2, random_masking

pytestmark = pytest.mark.integration

CONFIG = "fcmae/fcmae_convnextv2-tiny_1xb64-continue_folder.py"
LR, ENCODER_RATE, LAYER_DECAY, WEIGHT_DECAY = 1e-3, 0.5, 0.8, 0.05
WARMUP = 3  # of 2 iterations an epoch
DEPTHS = (1, 1, 2, 1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(6):
        pixels = random.integers(0, 256, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def config(images: Path, tiny_arch: dict, tmp_path: Path) -> Config:
    """The config of the repository, narrow, at a constant rate, without held-out images."""
    torch.save(ConvNeXtV2(tiny_arch, output_norms=False).state_dict(), tmp_path / "encoder.pth")
    cfg = Config.fromfile(config_path(CONFIG))
    cfg.model.backbone.update(arch=tiny_arch)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / "encoder.pth")
    cfg.model.neck.update(in_channels=32, num_channels=16)
    loader = cfg.train_dataloader
    loader.update(batch_size=3, num_workers=0, persistent_workers=False, pin_memory=False)
    loader.dataset.dataset = dict(
        type="ImageFolder",
        data_root=str(images),
        pipeline=[dict(loader.dataset.dataset.pipeline[0], scale=64), dict(type="PackInputs")],
    )
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.optim_wrapper.optimizer.update(lr=LR, weight_decay=WEIGHT_DECAY, eps=1e-20)
    cfg.optim_wrapper.paramwise_cfg.update(decay_rate=LAYER_DECAY, encoder_rate=ENCODER_RATE)
    cfg.param_scheduler = None
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=3)
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", interval=1)
    cfg.custom_hooks = [
        dict(type="StatelessSeedHook"),
        dict(type="DecoderWarmupHook", num_iters=WARMUP),
    ]
    cfg.work_dir = str(tmp_path / "run")
    return cfg


class Recorder(Hook):
    """Keeps the model's tensors as they are before each iteration."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self.states[runner.iter] = snapshot(runner)


def snapshot(runner: Runner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def train(config: Config, name: str) -> tuple[Runner, Recorder]:
    config.experiment_name = f"{name}_{Path(config.work_dir).parent.name}"
    runner = Runner.from_cfg(config)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    return runner, recorder


def steps_below_the_decoder(name: str) -> int:
    """Layers between a tensor of the encoder and the decoder, counted from the blocks behind it."""
    part, stage, block, *_ = name.split(".")
    behind = sum(DEPTHS[int(stage) + 1 :])
    return behind + DEPTHS[int(stage)] - (int(block) if part == "stages" else 0)


def test_the_encoder_is_still_and_then_moves_at_its_rates(config: Config, tmp_path: Path) -> None:
    runner, recorder = train(config, "rates")
    encoder = torch.load(tmp_path / "encoder.pth", weights_only=True)
    for iteration in range(WARMUP + 1):
        state = recorder.states[iteration]
        for name, value in encoder.items():
            assert torch.equal(state[f"backbone.{name}"], value), (iteration, name)
    before, after = recorder.states[WARMUP], recorder.states[WARMUP + 1]
    assert not torch.equal(recorder.states[0]["neck.mask_token"], before["neck.mask_token"])
    for name in encoder:
        rate = LR * ENCODER_RATE * LAYER_DECAY ** steps_below_the_decoder(name)
        old, new = before[f"backbone.{name}"], after[f"backbone.{name}"]
        decay = WEIGHT_DECAY if old.ndim > 1 else 0.0
        # AdamW's first step is the rate times the sign of the gradient, and the decay.
        step = (new - old * (1 - rate * decay)).abs()
        assert step.max().item() == pytest.approx(rate, rel=1e-3), name
    assert all(parameter.requires_grad for parameter in runner.model.parameters())


@pytest.mark.parametrize("interrupted_after", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(config: Config, interrupted_after: int) -> None:
    """After epoch 1 the warm-up still has an iteration to go, after epoch 2 it is over."""
    whole, _ = train(config, f"whole{interrupted_after}")
    expected = snapshot(whole)
    config.work_dir = f"{config.work_dir}_in_parts"
    config.train_cfg.max_epochs = interrupted_after
    train(config, f"first{interrupted_after}")
    config.train_cfg.max_epochs = 3
    config.resume = True
    resumed, recorder = train(config, f"second{interrupted_after}")
    assert min(recorder.states) == 2 * interrupted_after
    for name, value in snapshot(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_frozen_stages_stay_frozen(config: Config) -> None:
    config.model.backbone.frozen_stages = 2
    runner, recorder = train(config, "frozen")
    trained = {name for name, p in runner.model.backbone.named_parameters() if p.requires_grad}
    start, end = recorder.states[0], snapshot(runner)
    for name, _ in runner.model.backbone.named_parameters():
        frozen = name.split(".")[1] in ("0", "1")
        assert (name not in trained) is frozen
        assert torch.equal(start[f"backbone.{name}"], end[f"backbone.{name}"]) is frozen, name


@pytest.fixture
def one_process_group(tmp_path: Path):
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed(one_process_group: None, tiny_arch: dict) -> None:
    """DDP waits for a gradient of every parameter, unless it is told to look for the unused."""
    runner = SimpleNamespace(iter=0, logger=MMLogger.get_instance("ddp"))
    runner.model = MMDistributedDataParallel(FCMAE.build(tiny_arch, decoder_channels=16))
    with pytest.raises(ValueError, match="find_unused_parameters=True"):
        DecoderWarmupHook(2).before_train(runner)
    plain = FCMAE.build(tiny_arch, decoder_channels=16)
    runner.model = MMDistributedDataParallel(plain, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=LR)
    hook = DecoderWarmupHook(2)
    hook.before_train(runner)
    stem = plain.backbone.downsample_layers[0][0].weight
    moved = []
    for runner.iter in range(4):
        hook.before_train_iter(runner, runner.iter)
        mask = random_masking(2, (2, 2), 0.5)
        before = stem.detach().clone()
        optimizer.zero_grad()
        runner.model(torch.randn(2, 3, 64, 64), mask=mask, mode="loss")["loss"].backward()
        optimizer.step()
        moved.append(not torch.equal(stem, before))
    assert moved == [False, False, True, True]


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="num_iters must be at least 0, got -1"):
        DecoderWarmupHook(-1)
    runner = SimpleNamespace(iter=0, model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Linear has none"):
        DecoderWarmupHook(1).before_train(runner)


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_the_encoder_rate_is_a_factor(rate: float) -> None:
    with pytest.raises(ValueError, match=r"encoder_rate must lie in \(0, 1\]"):
        LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type="AdamW", lr=LR, weight_decay=WEIGHT_DECAY)),
            dict(scheme="single", decay_rate=1.0, encoder_rate=rate),
        )


def test_the_config_names_the_warm_up_where_it_matters() -> None:
    cfg = Config.fromfile(config_path(CONFIG))
    hooks = {hook["type"]: hook for hook in cfg.custom_hooks}
    assert hooks["DecoderWarmupHook"].num_iters == cfg.decoder_warmup_iters
    assert hooks["PlanHook"].warmup > cfg.decoder_warmup_iters
    assert hooks["ReconstructionHook"].interval == cfg.val_interval
    alone, both, cosine = cfg.param_scheduler
    assert (alone.begin, alone.end) == (0, cfg.decoder_warmup_iters)
    assert (both.begin, both.end) == (alone.end, alone.end + cfg.warmup_iters)
    assert cosine.begin == both.end
    assert cfg.find_unused_parameters is True
