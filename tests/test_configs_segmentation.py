"""The UperNet configs: values and sizes of the paper, rates, one step, inference, loading."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from mmengine.structures import PixelData
from mmpretrain.registry import MODELS as PRETRAIN_MODELS
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmseg.registry import METRICS, MODELS
from mmseg.structures import SegDataSample
from narrowing import ARCH, narrow_segmentor, write_scenes

import mmconvnextv2.datasets
import mmconvnextv2.engine
import mmconvnextv2.models  # noqa: F401
from mmconvnextv2.engine.layer_decay import LayerDecayOptimWrapperConstructor

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted((ROOT / "upernet").glob("*.py"))
ADE20K = [path for path in CONFIGS if "ade20k" in path.stem]
SAMPLE = next(path for path in CONFIGS if path.stem.endswith("_sample"))

# Channels, and parameters of the encoder alone as counted from the paper's architecture.
ENCODERS = dict(
    atto=((40, 80, 160, 320), 3_386_760),
    femto=((48, 96, 192, 384), 4_847_472),
    pico=((64, 128, 256, 512), 8_552_256),
    nano=((80, 160, 320, 640), 14_981_520),
    tiny=((96, 192, 384, 768), 27_864_960),
    base=((128, 256, 512, 1024), 87_690_752),
    large=((192, 384, 768, 1536), 196_416_768),
    huge=((352, 704, 1408, 2816), 657_467_008),
)
PUBLISHED_MILLIONS = dict(base=122, large=235, huge=707)
# Decay, layers, drop path: within the paper's range from Base on, ours below.
SETTINGS = dict(
    atto=(0.9, 6, 0.1),
    femto=(0.9, 6, 0.1),
    pico=(0.9, 6, 0.1),
    nano=(0.9, 6, 0.1),
    tiny=(0.9, 6, 0.4),
    base=(0.9, 12, 0.1),
    large=(0.9, 12, 0.3),
    huge=(0.8, 12, 0.4),
)


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def size_of(path: Path) -> str:
    return next(size for size in ENCODERS if f"-{size}_" in path.stem)


def config_path(size: str, variant: str = "8xb2-amp-160k_ade20k-512x512") -> Path:
    return ROOT / "upernet" / f"convnextv2-{size}_upernet_{variant}.py"


def config_of(*name: str) -> Config:
    return Config.fromfile(config_path(*name))


@pytest.fixture(autouse=True)
def _no_survey_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Runner's first log line calls compilers for their versions, about a second each time."""
    monkeypatch.setattr(Runner, "_log_env", lambda self, env_cfg: None)


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    """Inferencers and Runners set the default scope of the process; it is put back afterwards."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images and maps a split as in ADE20K: 0 is nothing, 1 to 11 are classes."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as FCMAE pre-training writes it: encoder, decoder, no output norms."""
    path = tmp_path_factory.mktemp("pretrained") / "epoch_1600.pth"
    settings = dict(
        type="FCMAE",
        backbone=dict(
            type="ConvNeXtV2", arch=ARCH, gap_before_final_norm=False, output_norms=False
        ),
        neck=dict(type="FCMAEDecoder", in_channels=16, num_channels=16),
        head=dict(type="FCMAEHead"),
    )
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = PRETRAIN_MODELS.build(settings)
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def narrowed(path: Path, scenes: Path, pretrained: Path | None, work_dir: Path) -> Config:
    """The config with few channels, small crops, small data and BN on a CPU, all else its own."""
    config = Config.fromfile(path)
    config.work_dir = str(work_dir)
    config.experiment_name = f"{path.stem}_{work_dir.name}"
    start = config.model.backbone.init_cfg
    narrow_segmentor(config, scenes)
    if pretrained is not None:
        config.model.backbone.init_cfg = dict(start, checkpoint=str(pretrained))
    for head in (config.model.decode_head, config.model.auxiliary_head):
        if head is not None and head.norm_cfg.type == "SyncBN":
            head.norm_cfg.type = "BN"
    return config


def test_every_recipe_has_a_config() -> None:
    expected = {f"convnextv2-{size}_upernet_8xb2-amp-160k_ade20k-512x512" for size in ENCODERS}
    expected |= {
        f"convnextv2-{size}_upernet_1xb8-amp-cp-160k_ade20k-512x512" for size in ("tiny", "base")
    }
    expected.add("convnextv2-huge_upernet_8xb2-amp-160k_ade20k-640x640")
    assert {path.stem for path in ADE20K} == expected
    assert len(CONFIGS) == len(ADE20K) + 1


@pytest.mark.parametrize("path", CONFIGS, ids=ids(CONFIGS))
def test_dump_reload(path: Path, tmp_path: Path) -> None:
    config = Config.fromfile(path)
    config.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == config.to_dict()


@pytest.mark.parametrize("path", ADE20K, ids=ids(ADE20K))
def test_full_size_has_the_papers_parameters(path: Path) -> None:
    config = Config.fromfile(path)
    with torch.device("meta"), DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model)
    counted = sum(parameter.numel() for parameter in model.parameters())

    channels, encoder = ENCODERS[size_of(path)]
    width, classes, last = 512, 150, channels[-1]

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs  # the norm behind it has two each

    output_norms = 2 * sum(channels)
    pyramid = 4 * conv(last, width, 1) + conv(last + 4 * width, width, 3)
    fpn = sum(conv(c, width, 1) for c in channels[:3]) + 3 * conv(width, width, 3)
    decode = pyramid + fpn + conv(4 * width, width, 3) + width * classes + classes
    auxiliary = conv(channels[2], 256, 3) + 256 * classes + classes
    assert counted == encoder + output_norms + decode + auxiliary
    if size_of(path) in PUBLISHED_MILLIONS:
        assert round(counted / 1e6) == PUBLISHED_MILLIONS[size_of(path)]


@pytest.mark.parametrize("path", ADE20K, ids=ids(ADE20K))
def test_values_of_the_paper(path: Path) -> None:
    """Appendix A.4, and ConvNeXt V1's segmentation code for what it leaves out."""
    config = Config.fromfile(path)
    size = size_of(path)
    side = 640 if "640x640" in path.stem else 512
    batch, lr = (8, 5e-5) if "1xb8" in path.stem else (16, 1e-4)

    backbone, decode, auxiliary = (
        config.model[part] for part in ("backbone", "decode_head", "auxiliary_head")
    )
    decay_rate, num_layers, drop_path = SETTINGS[size]
    assert (backbone.arch, backbone.drop_path_rate) == (size, drop_path)
    assert backbone.with_cp == ("-cp-" in path.stem)
    assert tuple(decode.in_channels) == ENCODERS[size][0]
    assert (decode.channels, decode.dropout_ratio, decode.norm_cfg.type) == (512, 0.1, "SyncBN")
    assert (auxiliary.in_index, auxiliary.channels) == (2, 256)
    assert auxiliary.in_channels == ENCODERS[size][0][2]
    assert auxiliary.loss_decode.loss_weight == 0.4

    wrapper = config.optim_wrapper
    assert wrapper.paramwise_cfg == dict(
        scheme="stage_wise", decay_rate=decay_rate, num_layers=num_layers
    )
    optimizer = dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
    assert wrapper.optimizer == optimizer
    loader = config.train_dataloader
    gpus = 1 if "1xb8" in path.stem else 8
    assert loader.batch_size * gpus == config.auto_scale_lr.base_batch_size == batch
    assert config.train_cfg.max_iters == 160_000

    steps = {step.type: step for step in loader.dataset.dataset.pipeline}
    assert steps["RandomResize"].scale == (4 * side, side)
    assert steps["RandomCrop"].crop_size == config.model.data_preprocessor.size == (side, side)
    test_cfg = config.model.test_cfg
    stride = {512: 341, 640: 426}[side]
    assert test_cfg == dict(mode="slide", crop_size=(side, side), stride=(stride, stride))
    resize = dict(type="Resize", scale=(4 * side, side), keep_ratio=True)
    for loader in (config.val_dataloader, config.test_dataloader):
        assert loader.dataset.pipeline == config.test_pipeline
        assert loader.dataset.pipeline[1] == resize
    scales = [step.scale for step in config.tta_pipeline[1].transforms[0]]
    assert [short / side for _, short in scales] == [0.75, 0.875, 1.0, 1.125, 1.25]
    assert all(long == 4 * short for long, short in scales)


@pytest.mark.parametrize("path", ADE20K, ids=ids(ADE20K))
def test_starts_from_what_another_config_writes(path: Path) -> None:
    checkpoint = Path(Config.fromfile(path).model.backbone.init_cfg.checkpoint)
    before = next(ROOT.glob(f"*/{checkpoint.parent.name}.py"))
    assert size_of(before) == size_of(path)
    assert checkpoint.name == f"epoch_{Config.fromfile(before).train_cfg.max_epochs}.pth"
    assert ("in22k" in before.stem) == ("640x640" in path.stem)


def test_children_differ_where_their_names_say() -> None:
    def differing(first: Config, second: Config) -> set[str]:
        a, b = first.to_dict(), second.to_dict()
        return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}

    small = config_of("base", "1xb8-amp-cp-160k_ade20k-512x512")
    names = {"batch_size", "train_dataloader", "optim_wrapper", "auto_scale_lr", "model"}
    assert differing(config_of("base"), small) == names
    small.model.backbone.with_cp = False
    assert small.model == config_of("base").model
    sizes = {"size", "pretrained", "model", "optim_wrapper"}
    assert differing(config_of("base"), config_of("huge")) == sizes
    large_images = {"crop_size", "stride", "test_scale", "pretrained", "model"} | {
        f"{part}_{kind}"
        for part, kind in (
            ("train", "pipeline"),
            ("test", "pipeline"),
            ("tta", "pipeline"),
            ("train", "dataloader"),
            ("val", "dataloader"),
            ("test", "dataloader"),
        )
    }
    huge_640 = config_of("huge", "8xb2-amp-160k_ade20k-640x640")
    assert differing(config_of("huge"), huge_640) == large_images


def test_schedule_is_that_of_convnext_v1() -> None:
    """Linear from almost 0 in 1,500 iterations, then linear to 0 at 160,000."""
    config = config_of("base")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-4)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(cfg, optimizer=optimizer)) for cfg in config.param_scheduler
    ]
    rates = []
    for _ in range(4_000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()

    def official(iteration: int) -> float:
        if iteration < 1_500:
            return 1e-4 * iteration / 1_500
        return 1e-4 * (160_000 - iteration) / (160_000 - 1_500)

    # mmengine's warm-up reaches the peak an iteration early, and its decay starts there.
    expected = [official(iteration) for iteration in range(4_000)]
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1.5 * 1e-4 / 1_500)
    assert max(rates) == pytest.approx(1e-4)
    assert config.param_scheduler[1].end == config.train_cfg.max_iters == 160_000


@pytest.mark.parametrize("size", ["tiny", "huge"])
def test_rates_and_decay_are_mmsegs(size: str, scenes: Path, tmp_path: Path) -> None:
    """The constructor of mmseg, which knows ConvNeXt V1, gives every parameter the same values."""
    config = narrowed(config_path(size), scenes, None, tmp_path)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model)
    cfg = dict(config.optim_wrapper)
    paramwise = dict(cfg.pop("paramwise_cfg"))
    cfg.pop("constructor")
    ours = LayerDecayOptimWrapperConstructor(cfg, paramwise)(model).optimizer
    paramwise["decay_type"] = paramwise.pop("scheme")
    reference = LearningRateDecayOptimizerConstructor(dict(cfg, type="OptimWrapper"), paramwise)(
        model
    ).optimizer

    def settings(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float]]:
        return {
            id(parameter): (pytest.approx(group["lr"]), group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    assert len({group["lr"] for group in ours.param_groups}) == 6, "stem, four stages, the rest"
    ours_by_id, reference_by_id = settings(ours), settings(reference)
    for name, parameter in model.named_parameters():
        assert ours_by_id[id(parameter)] == reference_by_id[id(parameter)], name


@pytest.mark.parametrize("path", CONFIGS, ids=ids(CONFIGS))
def test_one_step_and_one_inference(
    path: Path, scenes: Path, pretrained: Path, tmp_path: Path
) -> None:
    runner = Runner.from_cfg(narrowed(path, scenes, pretrained, tmp_path))
    model = runner.model
    model.init_weights()
    before = torch.load(pretrained, weights_only=True)["state_dict"]
    stem = model.backbone.downsample_layers[0][0].weight
    assert torch.equal(stem, before["backbone.downsample_layers.0.0.weight"])
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}

    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    batch = next(iter(runner.train_dataloader))
    labels = torch.cat([sample.gt_sem_seg.data.flatten() for sample in batch["data_samples"]])
    assert set(labels.tolist()) <= {*range(11), 255}, "0 in the file is ignored"
    losses = model.train_step(batch, wrapper)
    assert math.isfinite(losses["loss"].item())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    for part in ("backbone.downsample_layers.0.0.weight", "decode_head.conv_seg.weight"):
        assert part in moved
    assert ("auxiliary_head.conv_seg.weight" in moved) == (path != SAMPLE)

    model.eval()
    batch = next(iter(Runner.build_dataloader(runner.cfg.test_dataloader)))
    for sample in model.test_step(batch):
        assert sample.pred_sem_seg.data.shape == sample.gt_sem_seg.data.shape == (1, 80, 100)
        assert sample.seg_logits.data.shape[0] == runner.cfg.model.decode_head.num_classes


def test_multi_scale_test_averages_over_scales_and_flips(scenes: Path, tmp_path: Path) -> None:
    """The model as `--tta` builds and loads it; the reference averages probabilities by hand."""
    config = narrowed(config_path("tiny"), scenes, None, tmp_path)
    for resize in config.tta_pipeline[1].transforms[0]:
        resize.scale = tuple(side // 8 for side in resize.scale)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    plain = MODELS.build(config.model)
    torch.save(dict(state_dict=plain.state_dict(), meta={}), tmp_path / "model.pth")
    model = MODELS.build(dict(config.tta_model, module=config.model))
    load_checkpoint(model, str(tmp_path / "model.pth"), strict=True)
    batch = next(iter(Runner.build_dataloader(config.test_dataloader)))
    assert [samples[0].flip for samples in batch["data_samples"]] == [False, True] * 5
    plain.eval()
    with torch.no_grad():
        merged = model.eval().test_step(batch)
        by_hand = torch.zeros(150, 80, 100)
        for inputs, samples in zip(batch["inputs"], batch["data_samples"], strict=True):
            predicted = plain.test_step(dict(inputs=inputs, data_samples=samples))
            by_hand += predicted[0].seg_logits.data.softmax(0)
    assert torch.equal(merged[0].pred_sem_seg.data.squeeze(), by_hand.argmax(0))
    assert merged[0].gt_sem_seg.data.shape == (1, 80, 100)


def brute_force_miou(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Mean over the classes that occur in either, in percent; pixels labelled 255 do not count."""
    valid = labels != 255
    scores = []
    for k in range(num_classes):
        union = ((predicted == k) | (labels == k))[valid].sum()
        if union:
            scores.append(((predicted == k) & (labels == k))[valid].sum() / union)
    return 100 * float(np.mean(scores))


@pytest.mark.parametrize("kind", ["perfect", "constant", "random"])
def test_metric_of_hand_made_predictions(kind: str) -> None:
    config = Config.fromfile(SAMPLE)
    random = np.random.default_rng(0)
    labels_NHW = random.choice([0, 0, 0, 0, 3, 7, 255], (3, 16, 16))
    predicted_NHW = {
        "perfect": np.where(labels_NHW == 255, 5, labels_NHW),
        "constant": np.zeros_like(labels_NHW),
        "random": random.integers(0, 11, labels_NHW.shape),
    }[kind]
    with DefaultScope.overwrite_default_scope("mmseg"):
        metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dict(classes=config.classes)
    for labels_HW, predicted_HW in zip(labels_NHW, predicted_NHW, strict=True):
        sample = SegDataSample(
            gt_sem_seg=PixelData(data=torch.from_numpy(labels_HW)[None]),
            pred_sem_seg=PixelData(data=torch.from_numpy(predicted_HW)[None]),
        )
        metric.process({}, [sample.to_dict()])
    result = metric.evaluate(3)
    expected = brute_force_miou(predicted_NHW, labels_NHW, 11)
    assert result["mIoU"] == pytest.approx(expected, abs=0.01)
    if kind == "perfect":
        assert result["mIoU"] == result["aAcc"] == 100
    if kind == "constant":
        share = (labels_NHW[labels_NHW != 255] == 0).mean()
        assert result["mIoU"] == pytest.approx(100 * share / 3, abs=0.01)


def test_loading_is_strict(pretrained: Path, tmp_path: Path) -> None:
    """Pre-training's file loads as it is; another architecture's and half a file do not."""
    settings = config_of("base").model.backbone
    settings.arch = ARCH
    settings.init_cfg.checkpoint = str(pretrained)

    def build(**changes: object) -> torch.nn.Module:
        cfg = settings.copy()
        cfg.update(changes)
        return MODELS.build(cfg)

    with DefaultScope.overwrite_default_scope("mmseg"):
        backbone = build()
        backbone.init_weights()
        before = torch.load(pretrained, weights_only=True)["state_dict"]
        for name, tensor in backbone.state_dict().items():
            if name.startswith("norm"):
                assert torch.equal(tensor, torch.full_like(tensor, name.endswith("weight"))), name
            else:
                assert torch.equal(tensor, before[f"backbone.{name}"]), name
        with pytest.raises(ValueError, match=r"stages\.2\.1.*missing|missing.*stages\.2\.1"):
            build(arch=dict(ARCH, depths=(1, 1, 2, 1))).init_weights()
        half = tmp_path / "half.pth"
        half.write_bytes(pretrained.read_bytes()[: pretrained.stat().st_size // 2])
        with pytest.raises(ValueError, match="half.pth"):
            build(init_cfg=dict(type="Pretrained", checkpoint=str(half))).init_weights()


@pytest.fixture(scope="module")
def trained(
    scenes: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Config and checkpoint of four iterations of the sample's recipe, with an evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    config = narrowed(SAMPLE, scenes, pretrained, folder)
    config.train_cfg.update(max_iters=4, val_interval=4)
    config.default_hooks.checkpoint.interval = 2
    runner = Runner.from_cfg(config)
    runner.train()
    assert "val/mIoU" in runner.message_hub.log_scalars
    config.dump(folder / "config.py")
    return folder / "config.py", folder / "iter_4.pth"


def test_inference_as_mmseg_users_know_it(trained: tuple[Path, Path], scenes: Path) -> None:
    config, checkpoint = (str(path) for path in trained)
    picture = str(scenes / "images" / "validation" / "0.jpg")
    model = init_model(config, checkpoint, device="cpu")
    result = inference_model(model, picture)
    labels_HW = result.pred_sem_seg.data[0].numpy()
    assert labels_HW.shape == (80, 100)
    inferencer = MMSegInferencer(config, checkpoint, device="cpu", show_progress=False)
    answer = inferencer(picture, return_vis=True)
    np.testing.assert_array_equal(answer["predictions"], labels_HW)
    assert answer["visualization"].shape == (80, 100, 3)
    assert inferencer.model.dataset_meta["classes"][1] == "digit_0"


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    config = Config.fromfile(trained[0])
    config.work_dir = str(tmp_path)
    config.experiment_name = f"resumed_{tmp_path.name}"
    config.resume = True
    config.load_from = str(trained[1].parent / "iter_2.pth")
    runner = Runner.from_cfg(config)
    runner.train()
    whole = torch.load(trained[1], weights_only=True)["state_dict"]
    for name, tensor in runner.model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name
