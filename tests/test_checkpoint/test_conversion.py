"""Conversion between publishers: against their own models, and back again bit by bit.

Shape suffixes: N batch, C and D channels, H and W pixels or cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor, nn

from mmconvnextv2.checkpoint import (
    PUBLISHERS,
    StateDictMismatch,
    backbone_state_dict,
    convert_state_dict,
    load_strictly,
    recognize_source,
    to_our_names,
)
from mmconvnextv2.checkpoint.loading import OUTPUT_NORM
from mmconvnextv2.nn import ARCHITECTURES, FCMAE, ConvNeXtV2

pytestmark = pytest.mark.unit

WITH_DECODER = {"official-sparse", "mmconvnextv2"}
WITH_HEAD = set(PUBLISHERS) - {"official-sparse"}
ATTO = ARCHITECTURES["atto"]
DECODER_TENSORS, HEAD_TENSORS = 15, 4

StateDict = dict[str, Tensor]


def everything(arch: str | dict, num_classes: int = 5, decoder_channels: int = 16) -> StateDict:
    """Ours with all that any publisher has a place for: decoder, final norm and head."""
    model = FCMAE.build(arch, decoder_channels=decoder_channels)
    width = model.backbone.channels[-1]
    parts = nn.ModuleDict(
        {"backbone": nn.ModuleDict({"norm3": nn.LayerNorm(width)}),
         "head": nn.ModuleDict({"fc": nn.Linear(width, num_classes)})}
    )  # fmt: skip
    return model.state_dict() | parts.state_dict()


def randomized(state_dict: StateDict, seed: int = 0) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) for k, v in state_dict.items()}


def classifier(arch: str | dict, randomize_grn: Callable, num_classes: int = 5) -> nn.Module:
    """Our backbone with a linear head, under the names of a classifier; nothing in it is 0 or 1."""
    backbone = ConvNeXtV2(arch)
    head = nn.ModuleDict({"fc": nn.Linear(backbone.channels[-1], num_classes)})
    return randomize_grn(nn.ModuleDict({"backbone": backbone, "head": head})).eval()


def logits(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    return model["head"]["fc"](model["backbone"](x_NCHW)[-1])


def timm_model(arch: dict) -> nn.Module:
    if arch == ATTO:
        return timm.create_model("convnextv2_atto", num_classes=5)
    return TimmConvNeXt(
        depths=tuple(arch["depths"]), dims=tuple(arch["channels"]), use_grn=True,
        ls_init_value=None, num_classes=5,
    )  # fmt: skip


# mmpretrain is imported where it is used: some versions of transformers break its import.
def mmpretrain_model(arch: dict) -> nn.Module:
    from mmpretrain.models import ImageClassifier

    arch = {key: list(value) for key, value in arch.items()}
    backbone = dict(type="ConvNeXt", arch=arch, use_grn=True, layer_scale_init_value=0.0)
    head = dict(type="LinearClsHead", num_classes=5, in_channels=arch["channels"][-1])
    return ImageClassifier(backbone, head=head)


def transformers_model(arch: dict) -> nn.Module:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: requirements/optional.txt"
    )
    config = transformers.ConvNextV2Config(
        depths=list(arch["depths"]), hidden_sizes=list(arch["channels"]), num_labels=5
    )
    return transformers.ConvNextV2ForImageClassification(config)


PEERS: dict[str, tuple[Callable, Callable]] = {
    "timm": (timm_model, lambda net, x_NCHW: net(x_NCHW)),
    "transformers": (transformers_model, lambda net, x_NCHW: net(x_NCHW).logits),
    "mmpretrain": (mmpretrain_model, lambda net, x_NCHW: net.head(net.extract_feat(x_NCHW))),
}


@pytest.mark.parametrize("size", ["test", "atto"])
@pytest.mark.parametrize("peer", PEERS)
def test_logits_equal_the_publishers_own_model(peer, size, tiny_arch, randomize_grn):
    arch = tiny_arch if size == "test" else ATTO
    build, run = PEERS[peer]
    theirs, ours = build(arch).eval(), classifier(arch, randomize_grn)
    x_NCHW = torch.randn(2, 3, 64, 96)

    theirs.load_state_dict(convert_state_dict(ours.state_dict(), target=peer).state_dict)
    with torch.no_grad():
        expected, actual = run(theirs, x_NCHW), logits(ours, x_NCHW)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    randomize_grn(theirs, seed=1)
    back = convert_state_dict(theirs.state_dict())
    assert back.source == ("mmconvnextv2" if peer == "mmpretrain" else peer)
    ours.load_state_dict(back.state_dict)
    with torch.no_grad():
        changed = run(theirs, x_NCHW)
        torch.testing.assert_close(logits(ours, x_NCHW), changed, rtol=1e-5, atol=1e-5)
    assert (changed - expected).abs().max() > 0.1


@pytest.mark.parametrize("size", ARCHITECTURES)
@pytest.mark.parametrize("publisher", ["timm", "transformers"])
def test_names_and_shapes_are_the_publishers_own(publisher, size):
    with torch.device("meta"):
        ours = everything(size)
        if publisher == "timm":
            theirs = timm.create_model(f"convnextv2_{size}", num_classes=5)
        else:
            theirs = transformers_model(ARCHITECTURES[size])
    conversion = convert_state_dict(ours, target=publisher)
    assert (conversion.arch, conversion.channels) == (size, ARCHITECTURES[size]["channels"])
    actual = {key: value.shape for key, value in conversion.state_dict.items()}
    assert actual == {key: value.shape for key, value in theirs.state_dict().items()}


def check_round_trips(ours: StateDict) -> None:
    """From every format to every other and back; nothing but what has no place there is lost."""
    firsts = {source: convert_state_dict(ours, "mmconvnextv2", source) for source in PUBLISHERS}
    for source, target in itertools.product(PUBLISHERS, PUBLISHERS):
        first = firsts[source].state_dict
        there = convert_state_dict(first, source, target)
        back = convert_state_dict(there.state_dict, target, source)
        lost = DECODER_TENSORS * (source in WITH_DECODER and target not in WITH_DECODER)
        lost += HEAD_TENSORS * (source in WITH_HEAD and target not in WITH_HEAD)
        assert (len(there.left_out), back.left_out) == (lost, ()), (source, target)
        assert back.state_dict.keys() == first.keys() - set(there.left_out)
        for key, value in back.state_dict.items():
            assert (value.shape, value.dtype) == (first[key].shape, first[key].dtype), key
            assert value.is_meta or torch.equal(value, first[key]), (source, target, key)


@pytest.mark.parametrize("size", ["test", "atto"])
def test_there_and_back_is_exact(size, tiny_arch):
    check_round_trips(randomized(everything(tiny_arch if size == "test" else "atto")))


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_there_and_back_for_all_sizes(size):
    with torch.device("meta"):
        ours = everything(size)
    check_round_trips(ours)


def test_official_files_are_what_timm_makes_of_them(tiny_arch):
    for arch in (tiny_arch, ATTO):
        ours = randomized(everything(arch))
        official = convert_state_dict(ours, target="official").state_dict
        assert official["stages.2.1.grn.gamma"].shape[:3] == (1, 1, 1)
        assert {"norm.weight", "head.weight"} <= official.keys()
        expected = checkpoint_filter_fn(official, timm_model(arch))
        actual = convert_state_dict(official, target="timm").state_dict
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], value) for key, value in expected.items())


@pytest.mark.parametrize("axes", [0, 1, 3])
def test_grn_is_accepted_in_all_published_shapes(axes, tiny_arch):
    ours = randomized(everything(tiny_arch))
    official = convert_state_dict(ours, target="official").state_dict
    shaped = {
        key: value.view((1,) * axes + value.shape[-1:]) if ".grn." in key else value
        for key, value in official.items()
    }
    back = convert_state_dict(shaped).state_dict
    assert all(torch.equal(value, ours[key]) for key, value in back.items())
    assert back["backbone.stages.0.0.grn.beta"].shape == (32,)


def test_minkowski_kernels_run_over_rows_first(tiny_arch):
    """MinkowskiEngine numbers the offsets of a kernel with the first spatial axis fastest."""
    ours = randomized(everything(tiny_arch))
    sparse = convert_state_dict(ours, target="official-sparse").state_dict
    kernel_KCD = sparse["encoder.downsample_layers.1.1.kernel"]
    weight_DCHW = ours["backbone.downsample_layers.1.1.weight"]
    depthwise_KC = sparse["encoder.stages.3.0.dwconv.kernel"]
    depthwise_C1HW = ours["backbone.stages.3.0.depthwise_conv.weight"]
    assert kernel_KCD.shape == (4, 8, 16) and depthwise_KC.shape == (49, 32)
    for offset in range(4):
        row, column = offset % 2, offset // 2
        assert torch.equal(kernel_KCD[offset], weight_DCHW[:, :, row, column].T)
    for offset in range(49):
        row, column = offset % 7, offset // 7
        assert torch.equal(depthwise_KC[offset], depthwise_C1HW[:, 0, row, column])


def test_the_official_decoder_predicts_the_same(tiny_arch):
    model = FCMAE.build(tiny_arch, decoder_channels=16, decoder_depth=0)
    model.load_state_dict(randomized(model.state_dict()))
    official = convert_state_dict(model.state_dict(), target="official-sparse").state_dict
    features_NCHW, mask_NHW = torch.randn(2, 32, 2, 3), torch.rand(2, 2, 3) < 0.5
    x_NDHW = F.conv2d(features_NCHW, official["proj.weight"], official["proj.bias"])
    x_NDHW = torch.where(mask_NHW[:, None], official["mask_token"], x_NDHW)
    expected = F.conv2d(x_NDHW, official["pred.weight"], official["pred.bias"])
    actual = model.forward_decoder(features_NCHW, mask_NHW).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_files_without_prefix_decoder_or_head(tiny_arch):
    backbone = ConvNeXtV2(tiny_arch, output_norms=False).state_dict()
    to_hub = convert_state_dict(backbone, target="transformers")
    assert all(key.startswith("convnextv2.") for key in to_hub.state_dict)
    assert to_hub.left_out == ()
    bare = {key.removeprefix("convnextv2."): value for key, value in to_hub.state_dict.items()}
    encoder = convert_state_dict(bare, target="official-sparse").state_dict
    bare = {key.removeprefix("encoder."): value for key, value in encoder.items()}
    back = convert_state_dict(bare)
    assert back.source == "official-sparse"
    assert back.state_dict.keys() == {f"backbone.{key}" for key in backbone}
    assert all(torch.equal(back.state_dict[f"backbone.{k}"], v) for k, v in backbone.items())


def test_what_needs_no_change_is_passed_on(tiny_arch):
    ours = everything(tiny_arch)
    before = {key: value.clone() for key, value in ours.items()}
    for target in PUBLISHERS:
        converted = convert_state_dict(ours, target=target).state_dict
        same = {id(value) for value in converted.values()} & {id(value) for value in ours.values()}
        memory = {value.data_ptr() for value in ours.values()}
        elsewhere = [key for key, value in converted.items() if value.data_ptr() not in memory]
        assert all(key.endswith(".kernel") for key in elsewhere)
        if target in ("mmpretrain", "mmconvnextv2", "timm"):
            assert len(same) == len(converted)
    assert all(torch.equal(ours[key], value) for key, value in before.items())


def test_a_detector_gives_its_backbone_and_names_the_rest(tiny_arch):
    parts = ["neck.fpn_convs.0.conv.weight", "rpn_head.rpn_cls.bias", "roi_head.bbox_head.x"]
    net = ConvNeXtV2(tiny_arch, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
    state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    state |= {key: torch.zeros(1) for key in parts}
    conversion = convert_state_dict(state, target="timm")
    norms = [f"backbone.norm{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert sorted(conversion.left_out) == sorted([*norms, *parts])
    assert "9 left out, timm has no place for them" in conversion.summary()
    assert all(key in conversion.summary() for key in conversion.left_out)
    assert convert_state_dict(state).state_dict.keys() == state.keys()


@pytest.fixture
def timm_state(tiny_arch) -> StateDict:
    return convert_state_dict(everything(tiny_arch), target="timm").state_dict


def test_one_missing_one_extra_and_one_misshaped_tensor_are_named(timm_state):
    del timm_state["stages.2.blocks.1.mlp.grn.bias"]
    timm_state["stages.2.blocks.1.extra"] = torch.zeros(1)
    timm_state["stem.0.weight"] = torch.zeros(8, 3, 7, 7)
    timm_state["stages.0.blocks.0.mlp.fc1.weight"] = torch.zeros(8, 32)
    with pytest.raises(StateDictMismatch) as caught:
        convert_state_dict(timm_state)
    message = str(caught.value)
    assert "1 missing: stages.2.blocks.1.mlp.grn.bias" in message
    assert "1 unexpected: stages.2.blocks.1.extra" in message
    assert "stem.0.weight: (8, 3, 7, 7) in the file, (8, 3, 4, 4) in the model" in message
    assert "stages.0.blocks.0.mlp.fc1.weight: (8, 32) in the file, (32, 8)" in message
    assert "(timm, depths (1, 1, 2, 1), channels (8, 16, 24, 32))" in message


@pytest.mark.parametrize(
    "key", ["head.fc.bias", "head.norm.weight", "stem.1.bias", "stages.3.downsample.1.weight"]
)
def test_half_a_part_is_refused(key, timm_state):
    del timm_state[key]
    with pytest.raises(StateDictMismatch, match=f"1 missing: {key}"):
        convert_state_dict(timm_state)


@pytest.mark.parametrize("shape", [(), (48, 8), (49, 9), (49, 8, 2)])
def test_a_misshaped_kernel_is_refused(shape, tiny_arch):
    state = convert_state_dict(everything(tiny_arch), target="official-sparse").state_dict
    state["encoder.stages.0.0.dwconv.kernel"] = torch.zeros(shape)
    with pytest.raises(StateDictMismatch, match=r"misshaped: encoder.stages.0.0.dwconv.kernel"):
        convert_state_dict(state)


def test_foreign_mixed_and_wrongly_named_files_are_refused(timm_state, tiny_arch):
    resnet = {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}
    for foreign in (resnet, {}):
        with pytest.raises(ValueError, match="no ConvNeXt V2 of a known publisher"):
            recognize_source(foreign)
    with pytest.raises(ValueError, match="the first keys are conv1.weight, layer1.0.conv1.weight"):
        convert_state_dict(resnet)
    mixed = timm_state | convert_state_dict(timm_state, target="official").state_dict
    with pytest.raises(ValueError, match=r"several publishers are mixed: .*conv_dw.*dwconv"):
        recognize_source(mixed)
    with pytest.raises(StateDictMismatch, match="70 unexpected: downsample_layers.0.0.weight"):
        convert_state_dict(mixed, source="timm")
    with pytest.raises(ValueError, match="this is no official .* are those of timm"):
        convert_state_dict(timm_state, source="official")
    with pytest.raises(ValueError, match="unknown format 'keras'; choose one of official, "):
        convert_state_dict(timm_state, target="keras")
    ours = everything(tiny_arch)
    twice = ours | {"stages.0.0.norm.bias": torch.zeros(8)}
    with pytest.raises(ValueError, match=r"backbone.stages.0.0.norm.bias and stages.0.0.norm.bias"):
        convert_state_dict(twice)


def test_a_v1_and_a_file_without_a_stage_are_refused(timm_state):
    v1 = {key: value for key, value in timm_state.items() if ".grn." not in key}
    with pytest.raises(StateDictMismatch, match="ConvNeXt V1"):
        convert_state_dict(v1)
    short = {k: v for k, v in timm_state.items() if not k.startswith("stages.3.blocks")}
    with pytest.raises(StateDictMismatch, match=r"four stages; found \[1, 1, 2, 0\]"):
        convert_state_dict(short)


@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_any_publishers_file_loads_into_the_backbone(publisher, tiny_arch):
    ours = randomized(everything(tiny_arch))
    published = convert_state_dict(ours, target=publisher).state_dict
    net = ConvNeXtV2(tiny_arch)
    summary = load_strictly(net, backbone_state_dict(to_our_names(published)), OUTPUT_NORM)
    fresh = publisher == "official-sparse"
    assert summary.startswith(f"loaded {66 if fresh else 68} of 68")
    for key, value in net.state_dict().items():
        assert torch.equal(value, ours[f"backbone.{key}"]) or (fresh and key.startswith("norm3"))


def test_what_is_no_convnext_v2_is_left_for_the_loader_to_judge(timm_state):
    arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    v1 = ConvNeXtV2(arch, use_grn=False, layer_scale_init_value=1e-6).state_dict()
    for state in (v1, {"layer1.0.conv1.weight": torch.zeros(1)}, {}):
        assert {key: id(value) for key, value in to_our_names(state).items()} == {
            key: id(value) for key, value in state.items()
        }
    del timm_state["stem.1.bias"]
    with pytest.raises(StateDictMismatch, match=r"1 missing: stem\.1\.bias"):
        to_our_names(timm_state)
