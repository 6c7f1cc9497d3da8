"""The classification configs: the paper's values, full sizes, schedules, one step, inference."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.apis import FeatureExtractor, ImageClassificationInferencer
from mmpretrain.models import CutMix, LabelSmoothLoss, Mixup
from mmpretrain.registry import MODELS
from narrowing import ARCH, CHANNELS, narrow_classifier, write_classes
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

import mmconvnextv2.datasets
import mmconvnextv2.engine
import mmconvnextv2.engine.layer_decay
import mmconvnextv2.models  # noqa: F401
from mmconvnextv2 import nn

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted((ROOT / "convnextv2").glob("*.py"))
V1_PRETRAINING = sorted((ROOT / "fcmae").glob("*convnext-v1*.py"))
SIZES = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
V1 = dict(use_grn=False, layer_scale_init_value=1e-6)

# Published sizes with 1000 classes, and channels of the last stage.
PARAMETERS = dict(
    atto=(3_708_400, 320),
    femto=(5_233_240, 384),
    pico=(9_066_280, 512),
    nano=(15_623_800, 640),
    tiny=(28_635_496, 768),
    base=(88_717_800, 1024),
    large=(197_956_840, 1536),
    huge=(660_289_640, 2816),
)
V1_PARAMETERS = dict(base=88_591_464, large=197_767_336)

# Paper, tables 9 to 11, base rates of Base and Large by the official command. In the order of the
# paper's rows: base rate, weight decay, decay, scheme, epochs, warm-up, smoothing, mixup, cutmix,
# drop path.
FINE_TUNING = dict(
    atto=(2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0, 0, 0.1),
    femto=(2e-4, 0.05, 0.9, "single", 600, 0, 0.2, 0.3, 0.3, 0.0),
    pico=(2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.3, 0.3, 0.0),
    nano=(2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.5, 0.5, 0.1),
    tiny=(8e-4, 0.05, 0.9, "single", 300, 40, 0.1, 0.8, 1.0, 0.2),
    base=(6.25e-4, 0.05, 0.6, "group", 100, 20, 0.1, 0.8, 1.0, 0.1),
    large=(6.25e-4, 0.05, 0.6, "group", 100, 20, 0.1, 0.8, 1.0, 0.2),
    huge=(1.25e-3, 0.05, 0.75, "single", 50, 10, 0.1, 0.8, 1.0, 0.3),
)
# Table 12: decay, scheme, drop path.
IN22K = dict(
    nano=(0.9, "single", 0.0),
    tiny=(0.9, "single", 0.0),
    base=(0.8, "group", 0.1),
    large=(0.8, "group", 0.1),
    huge=(0.8, "single", 0.3),
)
# Table 13: decay, scheme, drop path, epochs, averaged weights, resolutions.
IN22K_IN1K = dict(
    nano=(0.9, "single", 0.1, 90, True, (224, 384)),
    tiny=(0.9, "single", 0.1, 90, True, (224, 384)),
    base=(0.8, "group", 0.2, 30, True, (224, 384)),
    large=(0.8, "group", 0.3, 30, True, (224, 384)),
    huge=(0.85, "single", 0.5, 30, False, (384, 512)),
)


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def size_of(path: Path) -> str:
    return next(size for size in SIZES if f"-{size}_" in path.stem)


def load(name: str) -> Config:
    return Config.fromfile(ROOT / "convnextv2" / f"{name}.py")


def fine_tuning(size: str) -> Config:
    return load(f"convnextv2-{size}_fcmae-pre_32xb32-coslr-{FINE_TUNING[size][4]}e_in1k")


@pytest.fixture(autouse=True)
def _quick_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each Runner the versions of all compilers and a formatted copy of its config."""
    monkeypatch.setattr(Runner, "_log_env", lambda self, env_cfg: None)
    monkeypatch.setattr(Runner, "dump_config", lambda self: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, one picture each, laid out as ImageNet and as the sample set."""
    return write_classes(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as FCMAE pre-training writes them, of a narrow V1 and V2."""
    folder = tmp_path_factory.mktemp("pretrained")
    settings = dict(
        type="FCMAE", neck=dict(type="FCMAEDecoder", in_channels=CHANNELS[-1], num_channels=16)
    )
    settings["head"] = dict(type="FCMAEHead")
    backbone = dict(type="ConvNeXtV2", arch=ARCH, gap_before_final_norm=False, output_norms=False)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        for name, more in dict(v1=V1, v2={}).items():
            model = MODELS.build({**settings, "backbone": {**backbone, **more}})
            torch.save(dict(state_dict=model.state_dict()), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in ("v1", "v2")}


def narrowed(path: Path, images: Path, pretrained: dict[str, Path], work_dir: Path) -> Config:
    """The config with few channels, four images a batch and small data, all else its own."""
    config = Config.fromfile(path)
    config.work_dir = str(work_dir)
    config.experiment_name = f"{path.stem}_{work_dir.name}"
    start = config.model.backbone.get("init_cfg")
    narrow_classifier(config, images)
    if start is not None:
        version = "v1" if "convnext-v1" in path.stem else "v2"
        config.model.backbone.init_cfg = dict(start, checkpoint=str(pretrained[version]))
    config.visualizer.vis_backends = []
    return config


def test_every_recipe_has_a_config() -> None:
    expected = {
        *(f"convnextv2-{s}_fcmae-pre_32xb32-coslr-{r[4]}e_in1k" for s, r in FINE_TUNING.items()),
        *(f"convnextv2-{s}_fcmae-pre_4xb256-linear-coslr-90e_in1k" for s in SIZES),
        *(f"convnextv2-{s}_fcmae-pre_64xb64-coslr-90e_in22k" for s in list(IN22K)[:-1]),
        "convnextv2-huge_fcmae-pre_64xb64-coslr-90e_in22k-384px",
        *(
            f"convnextv2-{s}_in22k-pre_32xb16-coslr-{row[3]}e_in1k{'' if px == 224 else f'-{px}px'}"
            for s, row in IN22K_IN1K.items()
            for px in row[5]
        ),
        *(f"convnextv2-{s}_16xb64-coslr-300e_in1k" for s in SIZES[:4]),
        *(f"convnextv2-{s}_64xb64-coslr-300e_in1k" for s in SIZES[4:7]),
        # The co-design table, whose fine-tuning starts from 800 epochs, and its baseline.
        *(
            f"{net}-{size}_{training}_in1k"
            for net in ("convnext-v1", "convnextv2")
            for size in ("base", "large")
            for training in ("64xb64-coslr-300e", "fcmae-800e-pre_32xb32-coslr-100e")
        ),
        "convnext-v1-base_16xb64-coslr-100e_in1k",
        "convnextv2-base_16xb64-coslr-100e_in1k",
    }
    samples = {name for name in ids(CONFIGS) if name.endswith("_sample")}
    assert set(ids(CONFIGS)) - samples == expected
    assert len(samples) == 1
    assert ids(V1_PRETRAINING) == [
        f"fcmae_convnext-v1-{size}_64xb64-coslr-800e_in1k" for size in ("base", "large")
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=ids(CONFIGS))
def test_dump_reload_and_knobs(path: Path, tmp_path: Path) -> None:
    config = Config.fromfile(path)
    config.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == config.to_dict()
    assert config.get("recipes") is None, "the other sizes are no part of a run"
    loader, images = config.train_dataloader, config.train_dataloader.dataset.dataset
    assert (config.data_root, config.image_size) == (images.data_root, images.pipeline[1].scale)
    assert (config.batch_size_per_gpu, config.num_workers) == (
        loader.batch_size,
        loader.num_workers,
    )
    assert config.test_dataloader.dataset.pipeline == config.test_pipeline
    gpus, images_per_gpu = map(int, re.search(r"_(\d+)xb(\d+)-", path.stem).groups())
    assert images_per_gpu == loader.batch_size
    assert gpus * images_per_gpu == config.auto_scale_lr.base_batch_size


@pytest.mark.parametrize("path", CONFIGS, ids=ids(CONFIGS))
def test_full_size_has_the_published_parameters(path: Path) -> None:
    config = Config.fromfile(path)
    with torch.device("meta"), DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(config.model)
    size, classes = size_of(path), config.model.head.num_classes
    expected, channels = PARAMETERS[size]
    if "convnext-v1" in path.stem:
        expected = V1_PARAMETERS[size]
    expected += (classes - 1000) * (channels + 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert config.model.data_preprocessor.num_classes == classes
    assert classes == (
        21841 if "in22k" in path.stem.split("_")[-1] else 10 if "_sample" in path.stem else 1000
    )


@pytest.mark.parametrize("size", SIZES)
def test_fine_tuning_is_the_papers(size: str) -> None:
    config = fine_tuning(size)
    base_lr, weight_decay, rate, scheme, epochs, warmup, smoothing, mixup, cutmix, drop_path = (
        FINE_TUNING[size]
    )
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.betas) == ("AdamW", (0.9, 0.999))
    assert optimizer.lr == pytest.approx(base_lr * 4)
    assert optimizer.weight_decay == weight_decay
    assert config.optim_wrapper.paramwise_cfg == dict(scheme=scheme, decay_rate=rate)
    assert "clip_grad" not in config.optim_wrapper
    assert config.train_cfg.max_epochs == epochs
    assert [scheduler.begin for scheduler in config.param_scheduler] == (
        [0, warmup] if warmup else [0]
    )
    assert config.model.head.loss == dict(type="LabelSmoothLoss", label_smooth_val=smoothing)
    assert config.model.head.init_cfg.std == 2e-5
    assert config.model.backbone.drop_path_rate == drop_path
    augments = config.model.get("train_cfg", {}).get("augments", [])
    assert [augment.alpha for augment in augments] == ([mixup, cutmix] if mixup else [])
    assert config.default_hooks.ema.momentum == pytest.approx(1 - 0.9999)
    assert config.train_dataloader.batch_size * 32 == config.auto_scale_lr.base_batch_size == 1024
    assert "epoch_1600" in config.model.backbone.init_cfg.checkpoint


@pytest.mark.parametrize("size", IN22K)
def test_intermediate_fine_tuning_is_the_papers(size: str) -> None:
    pixels = "-384px" if size == "huge" else ""
    config = load(f"convnextv2-{size}_fcmae-pre_64xb64-coslr-90e_in22k{pixels}")
    rate, scheme, drop_path = IN22K[size]
    assert config.optim_wrapper.optimizer.lr == pytest.approx(4e-3)
    assert config.optim_wrapper.optimizer.weight_decay == 0.05
    assert config.optim_wrapper.paramwise_cfg == dict(scheme=scheme, decay_rate=rate)
    assert config.train_cfg.max_epochs == 90
    assert [scheduler.begin for scheduler in config.param_scheduler] == [0, 5]
    assert config.model.backbone.drop_path_rate == drop_path
    assert [augment.alpha for augment in config.model.train_cfg.augments] == [0.8, 1.0]
    assert config.model.head.loss.label_smooth_val == 0.1
    assert config.model.head.init_cfg.std == 2e-5
    assert "ema" not in config.default_hooks
    assert config.train_dataloader.batch_size * 64 == config.auto_scale_lr.base_batch_size == 4096
    assert config.val_dataloader is None


@pytest.mark.parametrize(
    ("size", "pixels"), [(size, px) for size, row in IN22K_IN1K.items() for px in row[5]]
)
def test_fine_tuning_after_in22k_is_the_papers(size: str, pixels: int) -> None:
    rate, scheme, drop_path, epochs, ema, _ = IN22K_IN1K[size]
    suffix = "" if pixels == 224 else f"-{pixels}px"
    config = load(f"convnextv2-{size}_in22k-pre_32xb16-coslr-{epochs}e_in1k{suffix}")
    assert config.optim_wrapper.optimizer.lr == pytest.approx(5e-5)
    assert config.optim_wrapper.optimizer.weight_decay == 1e-8
    assert config.optim_wrapper.paramwise_cfg == dict(scheme=scheme, decay_rate=rate)
    assert config.train_cfg.max_epochs == epochs
    assert [scheduler.type for scheduler in config.param_scheduler] == ["CosineAnnealingLR"]
    assert config.model.backbone.drop_path_rate == drop_path
    assert "train_cfg" not in config.model, "neither mixup nor cutmix"
    assert ("ema" in config.default_hooks) == ema
    assert config.train_dataloader.batch_size * 32 == config.auto_scale_lr.base_batch_size == 512
    # It starts from what the config before it in the chain writes.
    folder = Path(config.model.backbone.init_cfg.checkpoint).parent.name
    assert folder in ids(CONFIGS) and size in folder
    assert config.train_dataloader.dataset.dataset.pipeline[1].scale == pixels
    resize, *rest = config.test_dataloader.dataset.pipeline[1:-1]
    if pixels == 224:
        assert (resize.type, resize.scale) == ("ResizeEdge", 256)
        assert rest == [dict(type="CenterCrop", crop_size=224)]
    else:
        assert (resize.type, resize.scale) == ("Resize", (pixels, pixels))
        assert not rest, "the whole image, warped"


@pytest.mark.parametrize("path", CONFIGS, ids=ids(CONFIGS))
def test_starts_from_what_another_config_writes(path: Path) -> None:
    config = Config.fromfile(path)
    from_scratch = "-pre_" not in path.stem
    assert ("init_cfg" in config.model.backbone) != from_scratch
    if from_scratch or path.stem.endswith("_sample"):
        return
    checkpoint = Path(config.model.backbone.init_cfg.checkpoint)
    before = next(ROOT.glob(f"*/{checkpoint.parent.name}.py"))
    assert size_of(before) == size_of(path)
    epochs = Config.fromfile(before).train_cfg.max_epochs
    assert checkpoint.name == f"epoch_{epochs}.pth"
    assert ("convnext-v1" in before.stem) == ("convnext-v1" in path.stem)


def test_children_differ_where_their_names_say() -> None:
    def flat(config: dict, prefix: str = "") -> dict:
        out = {}
        for key, value in config.items():
            out.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {})
            if not isinstance(value, dict):
                out[f"{prefix}{key}"] = value
        return out

    def differing(first: str, second: str) -> set[str]:
        a, b = (flat(load(name).to_dict()) for name in (first, second))
        missing = object()
        return {key for key in a.keys() | b.keys() if a.get(key, missing) != b.get(key, missing)}

    v1_only = {"model.backbone.use_grn", "model.backbone.layer_scale_init_value"}
    training = "64xb64-coslr-300e_in1k"
    assert differing(f"convnextv2-base_{training}", f"convnext-v1-base_{training}") == v1_only
    training = "fcmae-800e-pre_32xb32-coslr-100e_in1k"
    weights = {"pretrained", "model.backbone.init_cfg.checkpoint"}
    names = f"convnextv2-large_{training}", f"convnext-v1-large_{training}"
    assert differing(*names) == v1_only | weights
    names = "convnextv2-base_in22k-pre_32xb16-coslr-30e_in1k", f"convnextv2-base_{training}"
    names = names[0], f"{names[0]}-384px"
    pipelines = {
        "train_dataloader.dataset.dataset.pipeline",
        "val_dataloader.dataset.pipeline",
        "test_dataloader.dataset.pipeline",
    }
    assert differing(*names) == {"image_size", "train_pipeline", "test_pipeline"} | pipelines


def official_rates(
    lr: float, warmup: int, epochs: int, steps_per_epoch: int, min_lr: float = 1e-6
) -> np.ndarray:
    """The head's rate at each step: linear from 0, then half a cosine to min_lr."""
    rates = []
    for step in range(epochs * steps_per_epoch):
        epoch = step / steps_per_epoch
        if epoch < warmup:
            rates.append(lr * epoch / warmup)
        else:
            cosine = 1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))
            rates.append(min_lr + (lr - min_lr) * 0.5 * cosine)
    return np.array(rates)


@pytest.mark.parametrize("size", ["atto", "base"])
def test_schedule_of_every_group(
    size: str, images: Path, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    """Every layer follows the head's official rate, minimum included, times its own factor."""
    base_lr, _, rate, _, epochs, warmup, *_ = FINE_TUNING[size]
    path = ROOT / "convnextv2" / f"convnextv2-{size}_fcmae-pre_32xb32-coslr-{epochs}e_in1k.py"
    runner = Runner.from_cfg(narrowed(path, images, pretrained, tmp_path))
    runner.optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    optimizer = runner.optim_wrapper.optimizer
    steps_per_epoch = len(runner.train_loop.dataloader)
    schedulers = runner.build_param_scheduler(runner.cfg.param_scheduler)
    found = []
    for _ in range(epochs * steps_per_epoch):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    peak = base_lr * 4
    expected = official_rates(peak, warmup, epochs, steps_per_epoch)
    # mmengine's warm-up reaches the peak one iteration early.
    atol = 1.01 * peak / (warmup * steps_per_epoch) if warmup else 1e-9
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert min(scales) == pytest.approx(rate ** (4 if size == "atto" else 13))
    for scale, rates in zip(scales, np.transpose(found), strict=True):
        np.testing.assert_allclose(rates / scale, expected, rtol=0, atol=atol)
        assert rates[-1] / scale == pytest.approx(expected[-1], rel=1e-3)


def test_mixing_and_smoothing_as_timm() -> None:
    """Mixup's soft targets and the smoothed loss, against timm's own."""
    config = fine_tuning("base")
    with DefaultScope.overwrite_default_scope("mmpretrain"), torch.device("cpu"):
        config.model.backbone.arch = ARCH
        config.model.backbone.pop("init_cfg")
        config.model.head.update(in_channels=CHANNELS[-1], num_classes=7)
        model = MODELS.build(config.model)
    mixup, cutmix = model.data_preprocessor.batch_augments.augments
    assert isinstance(mixup, Mixup) and mixup.alpha == 0.8
    assert isinstance(cutmix, CutMix) and cutmix.alpha == 1.0
    assert model.data_preprocessor.batch_augments.probs is None, "each with probability 0.5"
    scores, labels, weight = torch.randn(6, 7), torch.randint(7, (6,)), 0.3
    one_hot = torch.nn.functional.one_hot(labels, 7).float()
    mixed = weight * one_hot + (1 - weight) * one_hot.flip(0)
    loss_module = model.head.loss_module
    assert isinstance(loss_module, LabelSmoothLoss)
    expected = SoftTargetCrossEntropy()(scores, mixup_target(labels, 7, weight, smoothing=0.1))
    torch.testing.assert_close(loss_module(scores, mixed), expected)


@pytest.mark.parametrize("path", CONFIGS, ids=ids(CONFIGS))
def test_one_step_and_one_inference(
    path: Path, images: Path, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    runner = Runner.from_cfg(narrowed(path, images, pretrained, tmp_path))
    model = runner.model
    model.init_weights()
    stem = model.backbone.downsample_layers[0][0].weight
    if "-pre_" in path.stem:
        version = "v1" if "convnext-v1" in path.stem else "v2"
        before = torch.load(pretrained[version], weights_only=True)["state_dict"]
        assert torch.equal(stem, before["backbone.downsample_layers.0.0.weight"])
        std = {"sample": 0.02, "linear": 0.01}.get(
            "linear" if "linear" in path.stem else path.stem.split("_")[-1], 2e-5
        )
    else:
        std = 0.02
    assert model.head.fc.weight.std().item() == pytest.approx(std, rel=0.5)
    assert not model.head.fc.bias.any()
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}

    # A config without warm-up starts at full rate; one with starts at almost nothing.
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    batch = next(iter(runner.train_dataloader))
    side = next((px for px in (384, 512) if f"{px}px" in path.stem), 224)
    side = 96 if path.stem.endswith("_sample") else side
    assert all(image.shape == (3, side, side) for image in batch["inputs"])
    losses = model.train_step(batch, wrapper)
    assert math.isfinite(losses["loss"].item())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert {"head.fc.weight", "head.fc.bias"} <= moved
    frozen = "linear" in path.stem
    assert any(name.startswith("backbone.stages") for name in moved) != frozen
    assert ("backbone.downsample_layers.0.0.weight" in moved) != frozen

    model.eval()
    loader = Runner.build_dataloader(runner.cfg.test_dataloader)
    batch = next(iter(loader))
    assert all(image.shape == (3, side, side) for image in batch["inputs"])
    for sample in model.test_step(batch):
        assert sample.pred_score.shape == (runner.cfg.model.head.num_classes,)
        assert sample.pred_score.sum().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("path", V1_PRETRAINING, ids=ids(V1_PRETRAINING))
def test_pretraining_of_v1(path: Path) -> None:
    config = Config.fromfile(path)
    with torch.device("meta"), DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(config.model)
        v2 = MODELS.build(Config.fromfile(str(path).replace("convnext-v1", "convnextv2")).model)
    assert config.train_cfg.max_epochs == 800
    assert not any("grn" in name for name in model.backbone.state_dict())
    assert sum("gamma" in name for name in model.backbone.state_dict()) == 36
    assert model.neck.state_dict().keys() == v2.neck.state_dict().keys()


def test_in22k_weights_bring_their_output_norm(
    images: Path, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    """A classifier takes the norm that was trained before it, and nothing of the other head."""
    path = ROOT / "convnextv2" / "convnextv2-tiny_in22k-pre_32xb16-coslr-90e_in1k.py"
    config = narrowed(path, images, pretrained, tmp_path)
    config.model.backbone.pop("init_cfg")
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        before = MODELS.build(config.model)
        torch.nn.init.constant_(before.backbone.norm3.weight, 3.0)
        torch.save(dict(state_dict=before.state_dict()), tmp_path / "in22k.pth")
        config.model.backbone.init_cfg = dict(
            type="Pretrained", checkpoint=str(tmp_path / "in22k.pth")
        )
        after = MODELS.build(config.model)
    after.init_weights()
    assert (after.backbone.norm3.weight == 3.0).all()
    assert not torch.equal(after.head.fc.weight, before.head.fc.weight)


@pytest.fixture
def trained(images: Path, pretrained: dict[str, Path], tmp_path: Path) -> Runner:
    """A run of two epochs by Femto's recipe, narrowed: mixing, averaged weights, evaluation."""
    path = ROOT / "convnextv2" / "convnextv2-femto_fcmae-pre_32xb32-coslr-600e_in1k.py"
    config = narrowed(path, images, pretrained, tmp_path)
    config.train_cfg.max_epochs = 2
    config.default_hooks.checkpoint.interval = 1
    config.optim_wrapper.optimizer.lr = 0.1  # averaged and last weights have to differ
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def test_a_run_saves_averaged_weights_and_both_inferencers_take_them(
    trained: Runner, images: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(tmp_path / "epoch_2.pth", weights_only=True)
    averaged, last = checkpoint["state_dict"], checkpoint["ema_state_dict"]
    name = "head.fc.bias"
    latest = trained.model.state_dict()[name]
    assert torch.equal(last[f"module.{name}"], latest)
    # The average starts at the first step's weights, and a decay of 0.9999 leaves it near them.
    assert (averaged[name] - latest).abs().max() > 0.01
    assert "val/accuracy/top1" in trained.message_hub.log_scalars

    config = tmp_path / "config.py"
    trained.cfg.dump(config)
    picture = str(images / "val" / "digit_0" / "0.png")
    inferencer = ImageClassificationInferencer(
        model=str(config), pretrained=str(tmp_path / "epoch_2.pth"), device="cpu"
    )
    (result,) = inferencer(picture, show_dir=str(tmp_path / "shown"))
    assert result["pred_scores"].shape == (1000,)
    assert list((tmp_path / "shown").iterdir())
    extractor = FeatureExtractor(
        model=str(config), pretrained=str(tmp_path / "epoch_2.pth"), device="cpu"
    )
    assert extractor(picture)[0][0].shape == (CHANNELS[-1],)


def test_recipes_take_only_their_own_architecture(pretrained: dict[str, Path]) -> None:
    """V1's weights under a V2 recipe fail with the lists of keys."""
    config = fine_tuning("base")
    config.model.backbone.update(arch=ARCH)
    config.model.backbone.init_cfg.checkpoint = str(pretrained["v1"])
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        backbone = MODELS.build(config.model.backbone)
    with pytest.raises(ValueError, match="grn"):
        backbone.init_weights()
    assert isinstance(backbone, nn.ConvNeXtV2)
