"""The configs of GRN's rivals: pre-training, fine-tuning from that, one difference each."""

from __future__ import annotations

import copy
import functools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from narrowing import ARCH, CHANNELS

import mmconvnextv2.engine
import mmconvnextv2.models  # noqa: F401
from mmconvnextv2.checkpoint import StateDictMismatch
from mmconvnextv2.models import ConvNeXtV2

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "ablations" / "grn"
FINE_TUNING = sorted(FOLDER.glob("convnextv2-*.py"))
PRE_TRAINING = sorted(FOLDER.glob("fcmae_*.py"))
SIDE = 64
MISSING = object()
"""Unequal to any value of a config."""


def variant(path: Path) -> str:
    return path.stem.split("_")[2 if path.stem.startswith("fcmae") else 1]


@functools.cache
def _load(path: Path) -> Config:
    return Config.fromfile(path)


def load(path: Path) -> Config:
    """A config of its own for each test; reading one takes longer than most of them."""
    return copy.deepcopy(_load(path))


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}").items()}


def changed(path: Path, base: str) -> set[str]:
    """Keys of a child that differ from its base, without what only names the weights."""
    ours, theirs = (flat(load(file).to_dict()) for file in (path, ROOT / "configs" / base))
    every = ours.keys() | theirs.keys()
    keys = {key for key in every if ours.get(key, MISSING) != theirs.get(key, MISSING)}
    return {re.sub(r"\.response_norm\..*", ".response_norm", key) for key in keys}


def pre_training_of(config: Config) -> Path:
    """The config that writes what another starts from."""
    stem = Path(config.model.backbone.init_cfg.checkpoint).parent.name
    (path,) = (p for folder in (FOLDER, ROOT / "configs/fcmae") for p in folder.glob(f"{stem}.py"))
    return path


def build(config: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(config.model)


def take_a_step(model: torch.nn.Module, config: Config) -> None:
    samples = [DataSample().set_gt_label(label) for label in range(4)]
    inputs = torch.randint(256, (4, 3, SIDE, SIDE), dtype=torch.uint8)
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    wrapper = build_optim_wrapper(model.train(), config.optim_wrapper)
    losses = model.train_step(dict(inputs=inputs, data_samples=samples), wrapper)
    assert math.isfinite(losses["loss"].item())
    moved = [key for key, p in model.named_parameters() if not torch.equal(p, before[key])]
    assert any("pointwise_conv2" in key for key in moved)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("path", FINE_TUNING, ids=variant)
def test_pre_training_then_fine_tuning(path: Path, tmp_path: Path) -> None:
    """One step of each, the second from the weights of the first, strictly."""
    fine_tuning = load(path)
    pre_training = load(pre_training_of(fine_tuning))
    pre_training.model.backbone.arch = ARCH
    pre_training.model.neck.update(in_channels=CHANNELS[-1], num_channels=16)
    fcmae = build(pre_training)
    take_a_step(fcmae, pre_training)
    torch.save(dict(state_dict=fcmae.state_dict()), tmp_path / "epoch_800.pth")

    fine_tuning.model.backbone.arch = ARCH
    fine_tuning.model.backbone.init_cfg.checkpoint = str(tmp_path / "epoch_800.pth")
    fine_tuning.model.head.in_channels = CHANNELS[-1]
    classifier = build(fine_tuning)
    classifier.init_weights()
    loaded, started = classifier.backbone.state_dict(), fcmae.backbone.state_dict()
    for key in loaded.keys() & started.keys():
        assert torch.equal(loaded[key], started[key]), key
    fresh, dropped = loaded.keys() - started.keys(), started.keys() - loaded.keys()
    assert {key.split(".")[-2] for key in fresh} == (
        {"norm3", "grn"} if variant(path) == "add-grn" else {"norm3"}
    )
    assert {key.split(".")[-2] for key in dropped} == (
        {"grn"} if variant(path) == "drop-grn" else set()
    )
    take_a_step(classifier, fine_tuning)


def test_each_child_is_the_base_and_one_change() -> None:
    norm, layout = ".model.backbone.response_norm", ".model.backbone.mask_layout"
    for path in PRE_TRAINING:
        base = "fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"
        assert changed(path, base) == {norm, layout}, path
        assert load(path).model.backbone.mask_layout == "masked"
    weights = {".pretrained", ".model.backbone.init_cfg.checkpoint"}
    grn = ".model.backbone.init_cfg.grn"
    expected = {
        "drop-grn": {grn, ".model.backbone.use_grn"},
        "add-grn": {grn, ".model.backbone.layer_scale_init_value"} | weights,
    }
    base = "convnextv2/convnextv2-base_fcmae-800e-pre_32xb32-coslr-100e_in1k.py"
    for path in FINE_TUNING:
        assert changed(path, base) == expected.get(variant(path), {norm} | weights), path


def test_both_stages_of_a_variant_have_the_same_norm() -> None:
    assert {variant(path) for path in FINE_TUNING} - {variant(path) for path in PRE_TRAINING} == {
        "drop-grn",
        "add-grn",
    }
    norms = []
    for path in FINE_TUNING:
        config = load(path)
        before = pre_training_of(config)
        norm = config.model.backbone.get("response_norm")
        assert load(before).model.backbone.get("response_norm") == norm
        if norm is not None:
            assert variant(before) == variant(path)
            norms.append(norm)
    assert len(norms) == len(PRE_TRAINING) == 14
    assert all(norms.count(norm) == 1 for norm in norms)


def test_readme_has_every_variant_with_the_papers_accuracy() -> None:
    """Tables 2 and 16 of the paper."""
    paper = {
        "avg": "83.7",
        "l1": "84.3",
        "standardize": "84.5",
        "inverse-sum": "83.8",
        "no-residual": "84.0",
        "no-affine": "not in the paper",
        "lrn": "83.2",
        "bn": "80.5",
        "ln": "83.8",
        "se": "84.4",
        "cbam": "84.5",
        "affine-only": "83.9",
        "no-norm": "83.9",
        "no-aggregation": "unstable",
        "drop-grn": "78.8",
        "add-grn": "80.6",
    }
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\|.*\| `([\w.-]+)` \| (.*?) \|$", text.partition("To compare")[0], flags=re.M
    )
    found = {variant(Path(name)) if "_" in name else name: value for name, value in rows}
    assert found == paper
    assert set(paper) == {variant(path) for path in FINE_TUNING}
    for name in re.findall(r"`([\w-]+\.py)`", text):
        assert any((ROOT / "configs").glob(f"**/{name}")), name


# The option of the loading, apart from the configs.


@pytest.mark.parametrize(
    ("in_file", "in_net", "mode", "message"),
    [
        (True, False, None, "grn"),
        (False, True, None, "grn"),
        (False, False, "drop", "the file has no GRN"),
        (True, True, "drop", "missing: stages.0.0.grn.gamma"),
        (True, True, "add", "the file has GRN already"),
        (False, False, "add", "this backbone has no GRN"),
    ],
)
def test_grn_is_dropped_and_added_only_where_asked(
    in_file: bool, in_net: bool, mode: str | None, message: str, tmp_path: Path
) -> None:
    torch.save(ConvNeXtV2(ARCH, use_grn=in_file).state_dict(), tmp_path / "weights.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"), grn=mode)
    net = ConvNeXtV2(ARCH, use_grn=in_net, init_cfg=init_cfg)
    with pytest.raises(StateDictMismatch, match=message):
        net.init_weights()


def test_all_else_stays_strict(tmp_path: Path) -> None:
    state = ConvNeXtV2(ARCH).state_dict()
    del state["stages.1.0.norm.weight"]
    torch.save(state, tmp_path / "weights.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"), grn="drop")
    with pytest.raises(StateDictMismatch, match="missing: stages.1.0.norm.weight"):
        ConvNeXtV2(ARCH, use_grn=False, init_cfg=init_cfg).init_weights()
    with pytest.raises(ValueError, match="init_cfg.grn must be one of drop, add, got 'replace'"):
        ConvNeXtV2(ARCH, init_cfg=dict(init_cfg, grn="replace"))
