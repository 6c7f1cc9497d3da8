"""The configs of FCMAE's design space: what they change, decoders' sizes, a step, fine-tuning."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

import mmconvnextv2.datasets
import mmconvnextv2.engine
import mmconvnextv2.models  # noqa: F401

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "ablations" / "fcmae"
ENDING = "_64xb64-coslr-800e_in1k"
V1, V2 = "convnext-v1-base", "convnextv2-base"
NECK, PREPROCESSOR = "model.neck.", "model.data_preprocessor."
# Every key in which a config differs from the recipe of its encoder, and its value there.
CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    (V1, "dense-encoder"): {"model.sparse_encoder": False},
    (V1, "unet"): {f"{NECK}type": "FCMAEUNetDecoder", f"{NECK}num_channels": None}
    | {f"{NECK}depth": None},
    (V1, "unet-skips"): {f"{NECK}type": "FCMAEUNetDecoder", f"{NECK}num_channels": None}
    | {f"{NECK}depth": None, f"{NECK}in_channels": [128, 256, 512, 1024]}
    | {"model.backbone.out_indices": (0, 1, 2, 3)},
    (V1, "transformer"): {f"{NECK}type": "FCMAETransformerDecoder", f"{NECK}depth": 8}
    | {f"{NECK}num_heads": 16},
    **{(V1, f"depth-{depth}"): {f"{NECK}depth": depth} for depth in (2, 4, 8, 12)},
    **{(V1, f"width-{w}"): {f"{NECK}num_channels": w} for w in (128, 256, 768, 1024)},
    **{
        (V2, f"mask-{percent}"): {
            f"{PREPROCESSOR}mask_ratio": percent / 100,
            "mask_ratio": percent / 100,
        }
        for percent in (10, 30, 50, 70, 90)
    },
    (V2, "cell-32"): {},
    (V2, "cell-64"): {f"{PREPROCESSOR}cell_size": 64},
    (V2, "raw-pixels"): {"model.head.norm_pix": False},
}


def path_of(encoder: str, name: str) -> Path:
    return FOLDER / f"fcmae_{encoder}_{name}{ENDING}{'-256px' if 'cell' in name else ''}.py"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, lists by index, under dotted keys."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        return {prefix.removesuffix("."): value}
    return {k: v for key, item in items for k, v in flat(item, f"{prefix}{key}.").items()}


@cache
def recipe(encoder: str) -> dict[str, Any]:
    path = ROOT / "configs" / "fcmae" / f"fcmae_{encoder}{ENDING}.py"
    return flat(Config.fromfile(path).to_dict())


def decoder_parameters(neck: dict[str, Any]) -> int:
    """Counted by hand: a linear layer of n to m has (n + 1) m, a ConvNeXt V2 block `block`."""

    def block(width: int) -> int:
        hidden = 4 * width
        return 50 * width + 2 * width + (width + 1) * hidden + 2 * hidden + (hidden + 1) * width

    width, depth = neck.get("num_channels", 512), neck.get("depth", 1)
    ends = 1025 * width + width + (width + 1) * 3072  # projection, mask token, prediction
    if neck["type"] == "FCMAEDecoder":
        return ends + depth * block(width)
    if neck["type"] == "FCMAETransformerDecoder":
        linear = 3 * (width + 1) * width + (width + 1) * width + 8 * width**2 + 5 * width
        return ends + depth * (linear + 4 * width) + 2 * width
    widths = (512, 256, 128, 64)
    inputs = list(zip((1024, 512, 256, 128), widths, strict=True))
    if isinstance(neck["in_channels"], int):
        inputs = inputs[:1]
    return (
        sum((c + 1) * d + d for c, d in inputs)
        + sum(map(block, widths))
        + sum((d + 1) * 2 * d for d in widths[:-1])
        + 65 * 48
    )


def narrow(config: Config) -> None:
    """Four blocks of 8 channels; a decoder as deep as it is, of a 16th of the width."""
    config.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    neck = config.model.neck
    neck.num_channels = neck.get("num_channels", 512) // 16
    neck.in_channels = 8 if isinstance(neck.in_channels, int) else [8, 8, 8, 8]


def test_every_config_is_here_and_in_the_readme() -> None:
    paths = {path_of(*key) for key in CHANGES}
    assert paths == set(FOLDER.glob("*.py"))
    rows = [line for line in (FOLDER / "README.md").read_text().splitlines() if "| `fcmae" in line]
    named = [row.split("`")[1] for row in rows]
    assert sorted(named) == sorted(f"fcmae_{encoder}_{name}" for encoder, name in CHANGES)


@pytest.mark.parametrize(("encoder", "name"), CHANGES, ids=[name for _, name in CHANGES])
def test_one_thing_changes_and_a_step_can_be_taken(encoder: str, name: str) -> None:
    config = Config.fromfile(path_of(encoder, name))
    own, base = flat(config.to_dict()), recipe(encoder)
    changed = {key: own.get(key) for key in {*own, *base} if own.get(key) != base.get(key)}
    if "cell" in name:
        images = {key for key, value in changed.items() if value == 256}
        assert "train_dataloader.dataset.dataset.pipeline.0.scale" in images
        changed = {key: value for key, value in changed.items() if key not in images}
    assert changed == CHANGES[encoder, name]

    neck = config.model.neck.to_dict()
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        with torch.device("meta"):
            decoder = MODELS.build(config.model.neck)
        narrow(config)
        small = MODELS.build(config.model)
    assert sum(p.numel() for p in decoder.parameters()) == decoder_parameters(neck)

    wrapper = build_optim_wrapper(small, config.optim_wrapper)
    ends = (small.backbone.downsample_layers[0][0].weight, small.neck.prediction.weight)
    before = [weight.detach().clone() for weight in ends]
    batch = dict(inputs=torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
    loss = small.train_step(batch, wrapper)["loss"].item()
    assert math.isfinite(loss) and loss > 0
    assert not any(map(torch.equal, ends, before))


def test_fine_tuning_takes_the_encoder_and_leaves_the_decoder(tmp_path: Path) -> None:
    """The README's command, for the checkpoint with the most unusual decoder."""
    pretraining = Config.fromfile(path_of(V1, "unet-skips"))
    name = "convnext-v1-base_fcmae-800e-pre_32xb32-coslr-100e_in1k.py"
    assert name in (FOLDER / "README.md").read_text()
    finetuning = Config.fromfile(ROOT / "configs" / "convnextv2" / name)
    narrow(pretraining)
    backbone = finetuning.model.backbone
    backbone.arch = pretraining.model.backbone.arch
    backbone.init_cfg.checkpoint = str(tmp_path / "epoch_800.pth")
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        source = MODELS.build(pretraining.model)
        torch.save(dict(state_dict=source.state_dict()), backbone.init_cfg.checkpoint)
        target = MODELS.build(backbone)
        target.init_weights()
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
