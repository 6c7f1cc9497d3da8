"""The registered ConvNeXtV2: equal to mmpretrain's, built from configs, loaded strictly."""

from __future__ import annotations

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS as ROOT_MODELS
from mmpretrain.models import ConvNeXt
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS

from mmconvnextv2 import nn as plain
from mmconvnextv2.models import ConvNeXtV2

pytestmark = pytest.mark.unit


def peer(**kwargs) -> ConvNeXt:
    """The ConvNeXt V2 of mmpretrain."""
    return ConvNeXt(use_grn=True, layer_scale_init_value=0.0, **kwargs)


@pytest.mark.parametrize("size", [(64, 96), (75, 98), (33, 127)])
@pytest.mark.parametrize(
    "outputs",
    [
        dict(),
        dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
        dict(out_indices=(1, 3)),
        dict(out_indices=2, gap_before_final_norm=False),
    ],
    ids=["classifier", "pyramid", "two-pooled", "one-map"],
)
def test_dense_features_equal_those_of_mmpretrain(
    outputs, size, tiny_arch, randomize_grn, relative_error
):
    theirs = randomize_grn(peer(arch=tiny_arch, **outputs)).double()
    ours = ConvNeXtV2(arch=tiny_arch, **outputs).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x_NCHW = torch.randn(2, 3, *size, dtype=torch.float64)
    for mine, wanted in zip(ours(x_NCHW), theirs(x_NCHW), strict=True):
        assert relative_error(mine, wanted) < 1e-12

    randomize_grn(ours, seed=1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for mine, wanted in zip(ours(x_NCHW), theirs(x_NCHW), strict=True):
        assert relative_error(mine, wanted) < 1e-12


def test_the_real_atto_equals_that_of_mmpretrain(randomize_grn, relative_error):
    theirs = randomize_grn(peer(arch="atto"))
    ours = ConvNeXtV2(arch="atto")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x_NCHW = torch.randn(1, 3, 75, 98)
    assert relative_error(ours(x_NCHW)[0], theirs(x_NCHW)[0]) < 1e-5


@pytest.mark.parametrize("arch", plain.ARCHITECTURES)
def test_all_sizes_have_the_depths_and_channels_of_mmpretrain(arch):
    settings = ConvNeXt.arch_settings[arch]
    with torch.device("meta"):
        ours = ConvNeXtV2(arch=arch)
    assert list(ours.depths) == settings["depths"]
    assert list(ours.channels) == settings["channels"]


def test_keys_keep_mmpretrains_order_and_dtype(tiny_arch):
    ours, theirs = ConvNeXtV2(arch=tiny_arch).state_dict(), peer(arch=tiny_arch).state_dict()
    assert set(ours) == set(theirs)
    assert all(ours[key].dtype == theirs[key].dtype for key in theirs)


@pytest.mark.parametrize("registry", [MODELS, ROOT_MODELS], ids=["mmpretrain", "root"])
def test_it_is_built_by_name(registry, tiny_arch):
    net = registry.build(dict(type="mmpretrain.ConvNeXtV2", arch=tiny_arch, drop_path_rate=0.1))
    assert type(net) is ConvNeXtV2
    assert isinstance(net, plain.ConvNeXtV2) and isinstance(net, BaseBackbone)


@pytest.mark.parametrize("package", ["mmdet", "mmseg"])
def test_it_is_built_from_other_scopes(package, tiny_arch):
    registry = pytest.importorskip(f"{package}.registry", reason=f"{package} is not installed")
    net = registry.MODELS.build(
        dict(
            type="mmpretrain.ConvNeXtV2",
            arch=tiny_arch,
            out_indices=(0, 1, 2, 3),
            gap_before_final_norm=False,
        )
    )
    assert [f.shape[1] for f in net(torch.randn(1, 3, 64, 64))] == [8, 16, 24, 32]


def test_its_name_is_known_to_layer_decay_constructors():
    assert "ConvNeXt" in ConvNeXtV2.__name__


def test_arguments_that_mmpretrain_has_too_keep_its_defaults():
    """What a config leaves out means the same as with mmpretrain's ConvNeXt."""
    net = ConvNeXtV2(arch=dict(depths=[1] * 4, channels=[8] * 4))
    assert list(net.out_indices) == [3]
    assert net.frozen_stages == 0
    assert net.gap_before_final_norm is True
    assert net.mask_layout == "packed"


@pytest.mark.parametrize("frozen", range(5))
def test_frozen_stages(frozen, tiny_arch):
    """N freezes stem or downsampling and blocks of the first N stages, as mmpretrain does."""
    net = ConvNeXtV2(arch=tiny_arch, frozen_stages=frozen, out_indices=(0, 3))
    theirs = peer(arch=tiny_arch, frozen_stages=frozen, out_indices=(0, 3))
    assert net.train() is net
    theirs.train()
    ours_by_name = {name: p.requires_grad for name, p in net.named_parameters()}
    assert ours_by_name == {name: p.requires_grad for name, p in theirs.named_parameters()}
    assert list(ours_by_name.values()).count(False) == (0, 14, 28, 52, 66)[frozen]
    for i in range(4):
        assert net.stages[i].training is (i >= frozen)
        assert net.downsample_layers[i].training is (i >= frozen)
    assert net.eval() is net and not net.stages[3].training


@pytest.mark.parametrize("layout", ["dense", "packed", "masked"])
def test_frozen_stages_still_let_the_rest_learn(layout, tiny_arch, random_mask):
    net = ConvNeXtV2(arch=tiny_arch, frozen_stages=2)
    mask = () if layout == "dense" else (random_mask([1, 2], (2, 2)),)
    if mask:
        net.mask_layout = layout
    net(torch.randn(2, 3, 64, 64), *mask)[0].square().sum().backward()
    assert all((p.grad is not None) is p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("frozen", [-1, 5])
def test_frozen_stages_out_of_range_are_named(frozen, tiny_arch):
    with pytest.raises(ValueError, match=f"frozen_stages.*{frozen}"):
        ConvNeXtV2(arch=tiny_arch, frozen_stages=frozen)


def test_bad_arguments_are_refused_through_the_registry_too():
    with pytest.raises(ValueError, match="gigantic"):
        MODELS.build(dict(type="ConvNeXtV2", arch="gigantic"))


def test_init_weights_draws_nothing(tiny_arch):
    net = ConvNeXtV2(arch=tiny_arch)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random_state = torch.get_rng_state()
    net.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


class Lines(logging.Handler):
    """Collect the messages of a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "whole model"])
def test_pretrained_weights_are_loaded_and_counted(wrapping, tiny_arch, randomize_grn, tmp_path):
    source = randomize_grn(ConvNeXtV2(arch=tiny_arch))
    state = source.state_dict()
    if wrapping == "whole model":
        state = {f"backbone.{key}": value for key, value in state.items()}
        state["neck.mask_token"] = torch.zeros(16)
    path = tmp_path / "weights.pth"
    torch.save(state if wrapping == "plain" else dict(state_dict=state, meta={}), path)

    init_cfg = dict(type="Pretrained", checkpoint=str(path))
    if wrapping == "whole model":
        init_cfg["prefix"] = "backbone."
    net = MODELS.build(dict(type="ConvNeXtV2", arch=tiny_arch, init_cfg=init_cfg))
    handler = Lines()
    logger = MMLogger.get_instance("strict-loading")
    logger.addHandler(handler)
    parameters = {id(p) for p in net.parameters()}
    try:
        net.init_weights()
    finally:
        logger.removeHandler(handler)

    for key, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    assert {id(p) for p in net.parameters()} == parameters, "parameters must be filled in place"
    total = len(source.state_dict())
    assert any(f"{total} of {total}" in line for line in handler.lines)


def test_what_does_not_fit_fails_with_the_lists(tiny_arch, tmp_path):
    state = ConvNeXtV2(arch=tiny_arch).state_dict()
    del state["stages.0.0.grn.gamma"]
    state["stages.9.0.norm.weight"] = torch.ones(3)
    state["stages.1.0.norm.bias"] = torch.ones(7)
    path = tmp_path / "weights.pth"
    torch.save(state, path)

    net = ConvNeXtV2(arch=tiny_arch, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError) as raised:
        net.init_weights()
    message = str(raised.value)
    for part in ("stages.0.0.grn.gamma", "stages.9.0.norm.weight", "stages.1.0.norm.bias"):
        assert part in message
    assert "(7,)" in message and "(16,)" in message
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_missing_file_is_named(tiny_arch, tmp_path):
    path = str(tmp_path / "nowhere.pth")
    net = ConvNeXtV2(arch=tiny_arch, init_cfg=dict(type="Pretrained", checkpoint=path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        net.init_weights()


@pytest.mark.parametrize("in_channels", [1, 5])
def test_other_numbers_of_channels(in_channels, tiny_arch, relative_error, randomize_grn):
    theirs = randomize_grn(peer(arch=tiny_arch, in_channels=in_channels)).double()
    ours = ConvNeXtV2(arch=tiny_arch, in_channels=in_channels).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x_NCHW = torch.randn(1, in_channels, 64, 64, dtype=torch.float64)
    assert relative_error(ours(x_NCHW)[0], theirs(x_NCHW)[0]) < 1e-12


def test_v1_equals_mmpretrain(tiny_arch, relative_error):
    """GRN off and LayerScale on is ConvNeXt V1, key by key."""
    settings = dict(use_grn=False, layer_scale_init_value=1e-6)
    ours, theirs = ConvNeXtV2(tiny_arch, **settings), ConvNeXt(tiny_arch, **settings)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x_NCHW = torch.randn(2, 3, 96, 64)
    assert relative_error(ours(x_NCHW)[0], theirs(x_NCHW)[0]) < 1e-5


@pytest.mark.parametrize("start", [1e-6, 0.5])
def test_layer_scale_starts_where_it_is_told(tiny_arch, start):
    net = ConvNeXtV2(tiny_arch, use_grn=False, layer_scale_init_value=start)
    gammas = [p for name, p in net.named_parameters() if name.endswith(".gamma")]
    assert len(gammas) == sum(tiny_arch["depths"])
    assert all(torch.equal(g, torch.full_like(g, start)) for g in gammas)
