"""Detection configs: paper's values, full size, one step, loading FCMAE weights, the metric."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import METRICS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from narrowing import ARCH, CHANNELS, SIDE, narrow_detector, write_coco
from pycocotools import mask as rle
from torch import Tensor

import mmconvnextv2.datasets
import mmconvnextv2.engine
import mmconvnextv2.models  # noqa: F401
from mmconvnextv2.checkpoint import StateDictMismatch
from mmconvnextv2.datasets import SeededIndex
from mmconvnextv2.models import FCMAE

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402

from mmconvnextv2.models.full_precision import (  # noqa: E402
    FullPrecisionRoIExtractor,
    FullPrecisionRPNHead,
)

pytestmark = pytest.mark.integration

CONFIGS = Path(__file__).parents[1] / "configs"
PATHS = sorted((CONFIGS / "mask_rcnn").glob("*.py"))
IDS = [path.stem for path in PATHS]
LSJ = "mask-rcnn_convnextv2-{}_fpn_8xb4-amp-lsj-3x_coco"
SAMPLE = "mask-rcnn_convnextv2-atto_fpn_1xb4-1e_sample"
# Encoders without norms and classifier, counted by hand from the paper; channels; drop path.
ENCODERS = {
    "atto": (3_386_760, (40, 80, 160, 320), 0.1),
    "femto": (4_847_472, (48, 96, 192, 384), 0.1),
    "pico": (8_552_256, (64, 128, 256, 512), 0.1),
    "nano": (14_981_520, (80, 160, 320, 640), 0.1),
    "tiny": (27_864_960, (96, 192, 384, 768), 0.4),
    "base": (87_690_752, (128, 256, 512, 1024), 0.4),
    "large": (196_416_768, (192, 384, 768, 1536), 0.4),
    "huge": (657_467_008, (352, 704, 1408, 2816), 0.5),
}


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / "mask_rcnn" / f"{name}.py")


def size_of(name: str) -> str:
    return name.split("-")[2].split("_")[0]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """An annotation file of 80 categories, as COCO has them, and one of 10 digits."""
    from mmdet.datasets import CocoDataset

    names = {
        80: list(CocoDataset.METAINFO["classes"]),
        10: [f"digit_{digit}" for digit in range(10)],
    }
    return {
        count: write_coco(tmp_path_factory.mktemp(f"coco{count}"), categories)
        for count, categories in names.items()
    }


def narrow(config: Config, ann_file: Path, work_dir: Path) -> Config:
    """Make a config train on the two images in about a second, its structure as it was."""
    config.work_dir = str(work_dir)
    config.experiment_name = f"{size_of(config.filename)}_{work_dir.name}"
    return narrow_detector(config, ann_file)


def test_all_recipes_are_there() -> None:
    expected = {LSJ.format(size) for size in ENCODERS} | {
        "mask-rcnn_convnextv2-tiny_fpn_8xb4-amp-1x_coco",
        "mask-rcnn_convnextv2-base_fpn_8xb4-amp-1x_coco",
        "mask-rcnn_convnextv2-tiny_fpn_1xb8-amp-cp-lsj-3x_coco",
        "mask-rcnn_convnextv2-base_fpn_1xb4-amp-cp-lsj-3x_coco",
        SAMPLE,
    }
    assert set(IDS) == expected


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_dump_reload(path: Path, tmp_path: Path) -> None:
    config = Config.fromfile(path)
    config.dump(tmp_path / "dumped.py")
    reloaded = Config.fromfile(tmp_path / "dumped.py")
    assert reloaded.to_dict() == config.to_dict()


def head_parameters(width: int, fc: int, classes: int, anchors: int) -> int:
    """RPN, box head and mask head, written down layer by layer."""

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + outputs

    rpn = conv(width, width, 3) + conv(width, anchors, 1) + conv(width, 4 * anchors, 1)
    box = conv(width, fc, 7) + conv(fc, fc, 1) + conv(fc, classes + 1, 1) + conv(fc, 4 * classes, 1)
    mask = 4 * conv(width, width, 3) + conv(width, width, 2) + conv(width, classes, 1)
    return rpn + box + mask


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_full_size_parameters(path: Path) -> None:
    config = Config.fromfile(path)
    size = size_of(path.stem)
    assert config.model.backbone.arch == size
    with torch.device("meta"), DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.model)
    encoder, channels, _ = ENCODERS[size]
    width, fc, classes = (64, 256, 10) if path.stem == SAMPLE else (256, 1024, 80)
    norms = 2 * sum(channels)
    fpn = sum(c * width + width + width * width * 9 + width for c in channels)
    expected = encoder + norms + fpn + head_parameters(width, fc, classes, anchors=3)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("size", ENCODERS)
def test_paper_values(size: str) -> None:
    """Appendix A.3, and what is settled where it leaves values open."""
    config = load(LSJ.format(size))
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-4, 0.05)
    assert config.optim_wrapper.type == "AutocastOptimWrapper"
    assert 8 * config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size == 32
    assert config.train_cfg.max_epochs == 36
    assert config.param_scheduler[1].milestones == [27, 33]
    layers = 12 if size in ("base", "large", "huge") else 6
    assert config.optim_wrapper.paramwise_cfg == dict(
        scheme="layer_wise", decay_rate=0.95, num_layers=layers
    )
    assert config.model.backbone.drop_path_rate == ENCODERS[size][2]
    assert config.model.test_cfg.rcnn.nms.type == "soft_nms"
    resize, crop = config.train_dataloader.dataset.dataset.pipeline[2:4]
    assert (resize.type, tuple(resize.scale), tuple(resize.ratio_range)) == (
        "RandomResize",
        (1024, 1024),
        (0.1, 2.0),
    )
    assert (crop.type, tuple(crop.crop_size)) == ("RandomCrop", (1024, 1024))


def flat(config: Any, prefix: str = "") -> dict[str, str]:
    items = config.items() if isinstance(config, dict) else enumerate(config)
    result = {}
    for key, value in items:
        name = f"{prefix}{key}"
        nested = isinstance(value, dict | list | tuple) and len(value) > 0
        result.update(flat(value, f"{name}.") if nested else {name: repr(value)})
    return result


def differences(first: Config, second: Config) -> set[str]:
    a, b = flat(first.to_dict()), flat(second.to_dict())
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def test_children_differ_where_their_names_say() -> None:
    of_size = {"pretrained", "model.backbone.arch", "model.backbone.drop_path_rate"}
    of_size |= {"model.backbone.init_cfg.checkpoint", "optim_wrapper.paramwise_cfg.num_layers"}
    of_size |= {f"model.neck.in_channels.{i}" for i in range(4)}
    tiny, base = load(LSJ.format("tiny")), load(LSJ.format("base"))
    assert differences(tiny, base) <= of_size
    small = load("mask-rcnn_convnextv2-base_fpn_1xb4-amp-cp-lsj-3x_coco")
    assert differences(base, small) == {
        "base_batch_size",
        "lr",
        "model.backbone.with_cp",
        "optim_wrapper.optimizer.lr",
        "auto_scale_lr.base_batch_size",
    }
    assert small.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * 4 / 32)
    short = load("mask-rcnn_convnextv2-base_fpn_8xb4-amp-1x_coco")
    for key in differences(base, short):
        assert key.startswith(
            (
                "max_epochs",
                "milestones",
                "image_size",
                "train_cfg.max_epochs",
                "param_scheduler.1",
                "train_pipeline",
                "train_dataloader.dataset.dataset.pipeline",
                "train_dataloader.batch_sampler",
                "model.data_preprocessor.batch_augments",
                "env_cfg.cudnn_benchmark",
            )
        ), key
    assert (short.train_cfg.max_epochs, short.param_scheduler[1].milestones) == (12, [8, 11])


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_knobs_are_what_is_used(path: Path) -> None:
    config = Config.fromfile(path)
    loader, data = config.train_dataloader, config.train_dataloader.dataset.dataset
    roi_head, schedule = config.model.roi_head, config.param_scheduler
    sized = data if "sample" not in path.stem else config.test_dataloader.dataset
    used = dict(
        data_root=data.data_root,
        classes=data.metainfo.get("classes"),
        num_classes=roi_head.bbox_head.num_classes,
        image_size=next(step.scale for step in sized.pipeline if "scale" in step),
        batch_size_per_gpu=loader.batch_size,
        num_workers=loader.num_workers,
        max_epochs=config.train_cfg.max_epochs,
        milestones=schedule[1].get("milestones"),
        warmup_iters=schedule[0].end,
        lr=config.optim_wrapper.optimizer.lr,
        base_batch_size=config.auto_scale_lr.base_batch_size,
        decay_rate=config.optim_wrapper.paramwise_cfg.decay_rate,
        pretrained=config.model.backbone.init_cfg.checkpoint,
    )
    assert {name: config[name] for name in used} == used
    assert roi_head.mask_head.num_classes == config.num_classes
    assert schedule[1].end == config.max_epochs
    assert config.val_evaluator.ann_file.startswith(config.data_root)


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_pretrained_names_a_run_of_this_project(path: Path) -> None:
    """Also the alternatives in comments: a config of that name and so many epochs exists."""
    named = [line.split('"')[1] for line in path.read_text().splitlines() if '"work_dirs/' in line]
    if "cp" in path.stem:
        assert not named, "taken from the config for eight GPUs"
    elif path.stem == SAMPLE:
        assert named == ["work_dirs/demo/classification/epoch_18.pth"]
    else:
        assert len(named) >= 2
        for name in named:
            _, run, file = name.split("/")
            (config,) = CONFIGS.glob(f"*/{run}.py")
            assert file == f"epoch_{Config.fromfile(config).train_cfg.max_epochs}.pth"


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_one_step_and_inference(path: Path, coco: dict[int, Path], tmp_path: Path) -> None:
    config = Config.fromfile(path)
    classes = config.model.roi_head.bbox_head.num_classes
    runner = Runner.from_cfg(narrow(config, coco[classes], tmp_path))
    model = runner.model.train()
    wrapper = runner.build_optim_wrapper(config.optim_wrapper)
    batch = next(iter(runner.train_dataloader))
    data = model.data_preprocessor(batch, training=True)
    assert data["inputs"].shape == (2, 3, SIDE, SIDE)
    assert model.backbone.with_cp == ("-cp-" in path.stem)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = model.train_step(batch, wrapper)
    assert set(losses) >= {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    assert all(math.isfinite(value) for value in losses.values())
    assert losses["loss_cls"] > 0 and losses["loss_mask"] > 0
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    # GRN's gamma stays where the drop path takes its block out of both samples.
    assert all(".grn." in name or "backbone.stages" in name for name in still), still

    model.eval()
    (first, second) = model.test_step(next(iter(runner.test_dataloader)))
    found = first.pred_instances
    assert found.masks.shape == (len(found), SIDE, SIDE)
    assert found.bboxes.shape == (len(found), 4) and len(second.pred_instances.scores) <= 100


def run_config(coco: dict[int, Path], work_dir: Path) -> Config:
    """One epoch of the 1x recipe on the two images."""
    name = "mask-rcnn_convnextv2-tiny_fpn_8xb4-amp-1x_coco"
    config = narrow(load(name), coco[80], work_dir)
    config.train_cfg.max_epochs = 1
    config.val_dataloader.batch_size = 1
    return config


def test_a_whole_run(coco: dict[int, Path], tmp_path: Path) -> None:
    """Loop, samplers grouped by aspect ratio, hooks, validation and checkpoint of the 1x recipe."""
    runner = Runner.from_cfg(run_config(coco, tmp_path))
    runner.train()
    batches = list(runner.train_dataloader.batch_sampler)
    assert sorted(int(index) for batch in batches for index in batch) == [0, 1]
    assert all(isinstance(index, SeededIndex) for batch in batches for index in batch)
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    assert saved["meta"]["dataset_meta"]["classes"][0] == "person"
    assert saved["state_dict"].keys() == runner.model.state_dict().keys()
    scalars = runner.message_hub.log_scalars
    assert 0 <= scalars["val/coco/bbox_mAP"].current() <= 1


def test_a_run_refuses_what_does_not_fit(coco: dict[int, Path], tmp_path: Path) -> None:
    """Heads of 80 classes on annotations of 10; an annotation file that is not there."""
    config = run_config(coco, tmp_path)
    digits = str(coco[10])
    for loader in (config.train_dataloader.dataset, config.val_dataloader):
        loader.dataset.update(ann_file=digits, metainfo=dict(classes=load(SAMPLE).classes))
    config.val_evaluator.ann_file = digits
    with pytest.raises(ValueError, match=rf"80 classes.*{digits}"):
        Runner.from_cfg(config).train()

    config = run_config(coco, tmp_path)
    config.experiment_name += "_missing"
    config.train_dataloader.dataset.dataset.ann_file = str(tmp_path / "gone.json")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        Runner.from_cfg(config).train()


def fcmae_checkpoint(folder: Path, arch: dict) -> tuple[Path, dict[str, Tensor]]:
    """What a run of FCMAE leaves: the whole model's state_dict and the run's notes."""
    channels = arch["channels"][-1]
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = FCMAE(
            backbone=dict(
                type="ConvNeXtV2", arch=arch, gap_before_final_norm=False, output_norms=False
            ),
            neck=dict(type="FCMAEDecoder", in_channels=channels, num_channels=16, depth=1),
        )
    path = folder / "epoch_1.pth"
    torch.save(dict(meta=dict(epoch=1), state_dict=model.state_dict()), path)
    return path, model.state_dict()


def build_from(checkpoint: Path) -> Any:
    config = load(LSJ.format("tiny"))
    config.model.neck.in_channels = list(CHANNELS)
    config.model.backbone.update(arch=ARCH)
    config.model.backbone.init_cfg.checkpoint = str(checkpoint)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.model)
    model.init_weights()
    return model


def test_fcmae_checkpoint_loads_as_it_is(tmp_path: Path) -> None:
    path, state = fcmae_checkpoint(tmp_path, ARCH)
    own = build_from(path).backbone.state_dict()
    encoder = {k.removeprefix("backbone."): v for k, v in state.items() if k[:8] == "backbone"}
    assert len(encoder) > 20
    assert all(torch.equal(own[key], value) for key, value in encoder.items())
    assert {key[:4] for key in own.keys() - encoder.keys()} == {"norm"}


@pytest.mark.parametrize("change", [dict(depths=(1, 1, 2, 1)), dict(channels=(8, 8, 16, 16))])
def test_foreign_architecture_fails(tmp_path: Path, change: dict) -> None:
    path, _ = fcmae_checkpoint(tmp_path, {**ARCH, **change})
    with pytest.raises(StateDictMismatch, match="does not fit"):
        build_from(path)


def evaluate(ann_file: Path, samples: list[DetDataSample]) -> dict[str, float]:
    config = load(SAMPLE).val_evaluator
    config.ann_file = str(ann_file)
    metric = METRICS.build(config)
    metric.dataset_meta = dict(classes=tuple(f"digit_{digit}" for digit in range(10)))
    metric.process({}, [sample.to_dict() for sample in samples])
    return metric.evaluate(size=len(samples))


def predictions(ann_file: Path, count: int) -> list[DetDataSample]:
    """The truth of each image as its prediction, the first `count` annotations of it."""
    content = json.loads(ann_file.read_text())
    samples = []
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]][:count]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        size_HW = (image["height"], image["width"])
        masks = [
            rle.decode(rle.merge(rle.frPyObjects(a["segmentation"], *size_HW))).astype(bool)
            for a in own
        ]
        found = InstanceData(
            bboxes=boxes,
            labels=torch.tensor([a["category_id"] - 1 for a in own], dtype=torch.long),
            scores=torch.ones(len(own)),
            masks=torch.from_numpy(np.array(masks, dtype=bool).reshape(len(own), *size_HW)),
        )
        sample = DetDataSample(metainfo=dict(img_id=image["id"], ori_shape=size_HW))
        sample.pred_instances = found
        samples.append(sample)
    return samples


def test_metric_of_a_perfect_prediction(coco: dict[int, Path]) -> None:
    figures = evaluate(coco[10], predictions(coco[10], count=2))
    for name in ("mAP", "mAP_50", "mAP_75"):
        assert figures[f"coco/bbox_{name}"] == figures[f"coco/segm_{name}"] == 1.0


def test_metric_of_an_empty_prediction(coco: dict[int, Path]) -> None:
    figures = evaluate(coco[10], predictions(coco[10], count=0))
    for kind in ("bbox", "segm"):
        for name in ("mAP", "mAP_50", "mAP_75", "mAP_m"):
            assert figures[f"coco/{kind}_{name}"] == 0.0
        # The rectangles are of medium size: COCO has no value for the others.
        assert figures[f"coco/{kind}_mAP_s"] == figures[f"coco/{kind}_mAP_l"] == -1.0


def test_metric_of_half_the_objects(coco: dict[int, Path]) -> None:
    """Of two classes one is found without fault and the other never."""
    figures = evaluate(coco[10], predictions(coco[10], count=1))
    assert figures["coco/bbox_mAP"] == figures["coco/segm_mAP"] == 0.5


def test_regions_keep_their_precision_in_bfloat16() -> None:
    """At 1000 px, bfloat16 moves a region by up to 2 px."""
    arguments = dict(
        roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
        out_channels=2,
        featmap_strides=[4, 8],
    )
    full, plain = FullPrecisionRoIExtractor(**arguments), SingleRoIExtractor(**arguments)
    feats = [torch.rand(1, 2, side, side).bfloat16() for side in (256, 128)]
    rois = torch.tensor([[0, 901.3, 902.7, 941.1, 933.3], [0, 513.0, 514.0, 805.0, 806.0]])
    expected = plain([x.float() for x in feats], rois)
    assert torch.equal(full(feats, rois), expected)
    rounded = plain([x.float() for x in feats], rois.bfloat16().float())
    assert (rounded - expected).abs().max() > 0.01, "the rounding would have been seen"


def test_regions_are_read_right_from_channels_last_memory() -> None:
    """RoIAlign of mmcv takes no notice of strides, and reads other images and channels."""
    arguments = dict(
        roi_layer=dict(type="RoIAlign", output_size=2, sampling_ratio=0),
        out_channels=3,
        featmap_strides=[4],
    )
    images, channels = torch.arange(2.0)[:, None], torch.arange(3.0)
    feature = (10 * images + channels)[:, :, None, None].expand(2, 3, 8, 8)
    rois = torch.tensor([[0.0, 4, 4, 20, 20], [1, 8, 4, 24, 28]])
    found = FullPrecisionRoIExtractor(**arguments)(
        [feature.contiguous(memory_format=torch.channels_last)], rois
    )
    assert torch.equal(found, (10 * images + channels)[:, :, None, None].expand(2, 3, 2, 2))


def test_proposals_are_float32_under_autocast() -> None:
    head = FullPrecisionRPNHead(**_rpn_arguments())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, deltas = head([torch.rand(1, 8, 4, 4)])
    assert scores[0].dtype == deltas[0].dtype == torch.float32


def _rpn_arguments() -> dict[str, Any]:
    arguments = load(SAMPLE).model.rpn_head
    arguments.update(in_channels=8, feat_channels=8)
    arguments.anchor_generator.strides = [4]
    arguments.pop("type")
    return arguments


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_annotations_are_checked(path: Path) -> None:
    hooks = [hook.type for hook in Config.fromfile(path).custom_hooks]
    assert hooks.count("AnnotationCheckHook") == 1
