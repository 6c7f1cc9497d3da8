"""Every config loads, dumps, reloads, builds at full size, and takes one CPU step when narrowed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from PIL import Image

import mmconvnextv2.datasets
import mmconvnextv2.engine
import mmconvnextv2.models  # noqa: F401
from mmconvnextv2.datasets.shard_packing import pack_folder
from mmconvnextv2.nn import ARCHITECTURES

pytestmark = pytest.mark.integration

CONFIGS = Path(__file__).parents[1] / "configs"
FCMAE = sorted((CONFIGS / "fcmae").glob("*.py"))
# Encoder, decoder of width 512 and prediction of 3072 values, counted by hand from the paper.
PARAMETERS = {
    "atto": 7_257_992,
    "femto": 8_751_472,
    "pico": 12_521_792,
    "nano": 19_016_592,
    "tiny": 31_965_568,
    "base": 91_922_432,
    "large": 200_910_592,
    "huge": 662_616_192,
    # V1: LayerScale in place of GRN.
    "v1-base": 91_796_096,
    "v1-large": 200_721_088,
}


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "train").mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 256, (80, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{i}.png")
    pack_folder(folder / "train", folder)  # for the config that reads shards
    return folder


def test_all_sizes_have_both_recipes() -> None:
    names = {path.stem for path in FCMAE}
    expected = {
        f"fcmae_convnextv2-{arch}_64xb64-coslr-{epochs}e_in1k"
        for arch in ARCHITECTURES
        for epochs in (800, 1600)
    }
    v1 = {f"fcmae_convnext-v1-{arch}_64xb64-coslr-800e_in1k" for arch in ("base", "large")}
    assert expected | v1 <= names
    # Any images, as files or shards or continued; the sample set; Huge for less memory, twice.
    assert len(names - expected - v1) == 6


@pytest.mark.parametrize("path", FCMAE, ids=ids(FCMAE))
def test_dump_reload(path: Path, tmp_path: Path) -> None:
    config = Config.fromfile(path)
    config.dump(tmp_path / "dumped.py")
    reloaded = Config.fromfile(tmp_path / "dumped.py")
    assert reloaded.to_dict() == config.to_dict()


@pytest.mark.parametrize("path", FCMAE, ids=ids(FCMAE))
def test_full_size_has_the_papers_parameters(path: Path) -> None:
    config = Config.fromfile(path)
    with torch.device("meta"), DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(config.model)
    arch = path.stem.split("_")[1].removeprefix("convnextv2-").removeprefix("convnext-")
    assert config.model.backbone.arch == arch.removeprefix("v1-")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("path", FCMAE, ids=ids(FCMAE))
def test_one_step(path: Path, images: Path, tmp_path: Path) -> None:
    config = Config.fromfile(path)
    config.work_dir = str(tmp_path)
    config.experiment_name = f"{path.stem}_{tmp_path.name}"
    config.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    config.model.neck.update(in_channels=8, num_channels=16)
    loader = config.train_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader.dataset.dataset.data_root = str(images)
    runner = Runner.from_cfg(config)
    wrapper = runner.build_optim_wrapper(config.optim_wrapper)
    batch = next(iter(runner.train_dataloader))
    side = 160 if "sample" in path.stem else 224
    assert batch["inputs"].shape == (2, 3, side, side)
    before = runner.model.neck.mask_token.clone()
    losses = runner.model.train_step(batch, wrapper)
    assert math.isfinite(losses["loss"].item())
    assert not torch.equal(runner.model.neck.mask_token, before)


@pytest.mark.parametrize("path", FCMAE, ids=ids(FCMAE))
def test_knobs_are_what_is_used(path: Path) -> None:
    config = Config.fromfile(path)
    loader, images = config.train_dataloader, config.train_dataloader.dataset.dataset
    used = dict(
        data_root=images.data_root,
        split=images.split,
        image_size=images.pipeline[0].scale,
        mask_ratio=config.model.data_preprocessor.mask_ratio,
        batch_size_per_gpu=loader.batch_size,
        num_workers=loader.num_workers,
        max_epochs=config.train_cfg.max_epochs,
        base_lr=config.optim_wrapper.optimizer.lr * 256 / config.auto_scale_lr.base_batch_size,
        base_batch_size=config.auto_scale_lr.base_batch_size,
    )
    first, second = config.param_scheduler[:2]
    assert second.begin == first.end
    if "continue" in path.stem:
        wrapper = config.optim_wrapper.paramwise_cfg
        used |= dict(
            checkpoint=config.model.backbone.init_cfg.checkpoint,
            in_channels=config.model.backbone.in_channels,
            inflate_stem=config.model.backbone.init_cfg.inflate_stem,
            val_interval=config.train_cfg.val_interval,
            held_out_share=images.held_out_share,
            decoder_warmup_iters=first.end,
            warmup_iters=second.end - second.begin,
            encoder_rate=wrapper.encoder_rate,
            layer_decay=wrapper.decay_rate,
        )
        held_out = config.val_dataloader.dataset.dataset
        assert (held_out.data_root, held_out.held_out_share) == (
            config.data_root,
            config.held_out_share,
        )
        assert config.model.neck.image_channels == config.in_channels
    else:
        used |= dict(warmup_epochs=first.end)
    knobs = {name: config[name] for name in used}
    assert knobs.pop("base_lr") == pytest.approx(used.pop("base_lr"))
    assert knobs == used


@pytest.mark.parametrize("epochs", [800, 1600])
def test_schedule_is_the_official_one(epochs: int, images: Path, tmp_path: Path) -> None:
    name = f"fcmae_convnextv2-base_64xb64-coslr-{epochs}e_in1k.py"
    config = Config.fromfile(CONFIGS / "fcmae" / name)
    config.work_dir = str(tmp_path)
    config.experiment_name = f"schedule_{tmp_path.name}"
    config.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    config.model.neck.update(in_channels=8, num_channels=16)
    loader = config.train_dataloader
    loader.update(batch_size=1, num_workers=0, persistent_workers=False)
    loader.dataset.dataset.data_root = str(images)
    runner = Runner.from_cfg(config)
    runner.optim_wrapper = runner.build_optim_wrapper(config.optim_wrapper)
    steps_per_epoch = len(runner.train_loop.dataloader)
    schedulers = runner.build_param_scheduler(config.param_scheduler)

    peak, warmup = 1.5e-4 * 4096 / 256, 40
    rates = []
    for _ in range(epochs * steps_per_epoch):
        rates.append(runner.optim_wrapper.get_lr()["lr"][0])
        runner.optim_wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()

    def official(epoch: float) -> float:
        if epoch < warmup:
            return peak * epoch / warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))

    expected = [official(step / steps_per_epoch) for step in range(len(rates))]
    # mmengine's warm-up reaches the peak one iteration early.
    one_iteration = peak / (warmup * steps_per_epoch)
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1.01 * one_iteration)
    assert max(rates) == pytest.approx(2.4e-3)


def test_paper_values() -> None:
    """Table 8 of the paper: AdamW, betas, weight decay, batch, mask ratio, crop scale."""
    config = Config.fromfile(CONFIGS / "fcmae" / "fcmae_convnextv2-huge_64xb64-coslr-800e_in1k.py")
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.betas, optimizer.weight_decay) == ("AdamW", (0.9, 0.95), 0.05)
    assert optimizer.lr == pytest.approx(2.4e-3)
    assert config.train_dataloader.batch_size * 64 == config.auto_scale_lr.base_batch_size == 4096
    assert config.model.data_preprocessor.mask_ratio == 0.6
    crop = config.train_dataloader.dataset.dataset.pipeline[0]
    assert (crop.type, crop.scale) == ("LoadRandomResizedCrop", 224)  # which is bicubic
    assert crop.crop_ratio_range == (0.2, 1.0)
