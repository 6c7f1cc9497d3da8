"""ConvNeXtV2 as a module: sizes, initialisation, options users know from mmpretrain, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmconvnextv2.nn import ARCHITECTURES, ConvNeXtV2

pytestmark = pytest.mark.unit

# Parameters with a classification head of 1000 classes.
PARAMETERS = {
    "atto": 3_708_400,
    "femto": 5_233_240,
    "pico": 9_066_280,
    "nano": 15_623_800,
    "tiny": 28_635_496,
    "base": 88_717_800,
    "large": 197_956_840,
    "huge": 660_289_640,
}


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_count(arch):
    with torch.device("meta"):
        net = ConvNeXtV2(arch=arch)
    parameters = list(net.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    width = net.norm3.weight.numel()
    head = 1000 * width + 1000
    assert sum(p.numel() for p in parameters) + head == PARAMETERS[arch]


def test_there_are_eight_sizes():
    assert list(ARCHITECTURES) == list(PARAMETERS)


def test_state_dict_keys(tiny_arch):
    """The keys of mmpretrain's ConvNeXt, spelled out, so that this needs no mmpretrain."""
    keys = set(ConvNeXtV2(arch=tiny_arch, out_indices=(1, 3)).state_dict())
    expected = {f"norm{i}.{p}" for i in (1, 3) for p in ("weight", "bias")}
    for i, depth in enumerate(tiny_arch["depths"]):
        expected |= {f"downsample_layers.{i}.{j}.{p}" for j in (0, 1) for p in ("weight", "bias")}
        for b in range(depth):
            for part in ("depthwise_conv", "norm", "pointwise_conv1", "pointwise_conv2"):
                expected |= {f"stages.{i}.{b}.{part}.{p}" for p in ("weight", "bias")}
            expected |= {f"stages.{i}.{b}.grn.{p}" for p in ("gamma", "beta")}
    assert keys == expected


def test_without_output_norms_there_is_no_norm(tiny_arch):
    with_norms = ConvNeXtV2(arch=tiny_arch)
    without = ConvNeXtV2(arch=tiny_arch, output_norms=False, gap_before_final_norm=False)
    missing = set(with_norms.state_dict()) - set(without.state_dict())
    assert missing == {"norm3.weight", "norm3.bias"}


def test_grn_parameters_are_one_dimensional(tiny_arch):
    state = ConvNeXtV2(arch=tiny_arch).state_dict()
    for i, channels in enumerate(tiny_arch["channels"]):
        assert state[f"stages.{i}.0.grn.gamma"].shape == (4 * channels,)
        assert state[f"stages.{i}.0.grn.beta"].shape == (4 * channels,)


def test_initialisation_draws_a_normal_of_std_002():
    """Truncation lies 100 standard deviations out, so quantiles are those of a normal."""
    net = ConvNeXtV2(arch="atto", out_indices=(0, 1, 2, 3))
    checked = 0
    for name, parameter in net.named_parameters():
        if "grn" in name or name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 5000:
            values = parameter.detach().flatten().double().sort().values
            levels = torch.tensor([0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999]).double()
            expected = torch.distributions.Normal(0.0, 0.02).cdf(values)
            steps = torch.linspace(0, 1, len(values), dtype=torch.float64)
            kolmogorov = (expected - steps).abs().max().item()
            assert kolmogorov < 2.2 / len(values) ** 0.5, (name, values.quantile(levels))
            checked += 1
    assert checked > 20


def test_one_seed_gives_one_initialisation(tiny_arch):
    torch.manual_seed(3)
    first = ConvNeXtV2(arch=tiny_arch).state_dict()
    torch.manual_seed(3)
    second = ConvNeXtV2(arch=tiny_arch).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_train_returns_the_module(tiny_arch):
    net = ConvNeXtV2(arch=tiny_arch)
    assert net.train() is net and net.training
    assert net.eval() is net and not net.training


@pytest.mark.parametrize(
    ("out_indices", "channels"),
    [(-1, [32]), (3, [32]), (0, [8]), ((1, -1), [16, 32]), ([0, 1, 2, 3], [8, 16, 24, 32])],
)
def test_out_indices(out_indices, channels, tiny_arch):
    x_NCHW = torch.randn(1, 3, 64, 96)
    pooled = ConvNeXtV2(arch=tiny_arch, out_indices=out_indices)(x_NCHW)
    assert isinstance(pooled, tuple)
    assert [tuple(f.shape) for f in pooled] == [(1, c) for c in channels]
    maps = ConvNeXtV2(arch=tiny_arch, out_indices=out_indices, gap_before_final_norm=False)(x_NCHW)
    strides = {8: 4, 16: 8, 24: 16, 32: 32}
    expected = [(1, c, 64 // strides[c], 96 // strides[c]) for c in channels]
    assert [tuple(f.shape) for f in maps] == expected


def test_out_indices_given_as_a_list_stay_as_they_were(tiny_arch):
    """The resolved index is not written back, which mmpretrain does."""
    indices = [0, -1]
    ConvNeXtV2(arch=tiny_arch, out_indices=indices)
    assert indices == [0, -1]


@pytest.mark.parametrize("in_channels", [1, 5])
def test_in_channels(in_channels, tiny_arch, random_mask):
    net = ConvNeXtV2(arch=tiny_arch, in_channels=in_channels)
    x_NCHW = torch.randn(2, in_channels, 64, 64)
    assert net(x_NCHW)[0].shape == (2, 32)
    assert net(x_NCHW, random_mask([1, 2], (2, 2)))[0].shape == (2, 32)


@pytest.mark.parametrize("layout", ["dense", "packed", "masked"])
def test_activation_checkpointing_changes_memory_and_no_number(
    layout, tiny_arch, randomize_grn, random_mask
):
    x_NCHW = torch.randn(2, 3, 64, 64)
    mask = () if layout == "dense" else (random_mask([1, 3], (2, 2)),)
    kept: dict[bool, int] = {}
    results: dict[bool, dict[str, Tensor]] = {}
    for with_cp in (False, True):
        net = randomize_grn(ConvNeXtV2(arch=tiny_arch, with_cp=with_cp, drop_path_rate=0.5))
        if mask:
            net.mask_layout = layout
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            (feature,) = net(x_NCHW, *mask)
        feature.square().sum().backward()
        kept[with_cp] = sum(sizes.values())
        results[with_cp] = {name: p.grad for name, p in net.named_parameters()}
        results[with_cp]["feature"] = feature
    assert kept[True] < kept[False] / 2
    for name, value in results[False].items():
        torch.testing.assert_close(results[True][name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", ["dense", "packed", "masked"])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(layout, random_mask, randomize_grn):
    """The last block of rate r: a branch is dropped with r, else scaled by 1 / (1 - r)."""
    rate, samples = 0.4, 200
    arch = dict(depths=[1, 1, 1, 1], channels=[4, 4, 4, 8])
    net = randomize_grn(ConvNeXtV2(arch=arch, drop_path_rate=rate))
    last = net.stages[3][0]
    calls: list[tuple[Tensor, Tensor]] = []
    last.register_forward_hook(lambda _, args, out: calls.append((args[0], out)))
    mask = () if layout == "dense" else (random_mask([2] * samples, (2, 2)),)
    if mask:
        net.mask_layout = layout
    x_NCHW = torch.randn(samples, 3, 64, 64)

    net.train()
    net(x_NCHW, *mask)
    inputs, outputs = calls.pop()
    branch = (outputs - inputs).detach()
    with torch.no_grad():
        handle = last.register_forward_pre_hook(lambda _, args: (inputs.detach(), *args[1:]))
        net.eval()(x_NCHW, *mask)
        handle.remove()
    full = calls.pop()[1] - inputs.detach()

    # Packed cells are sorted by sample with two cells each, so both views start with the sample.
    branch, full = branch.reshape(samples, -1), full.reshape(samples, -1)
    kept = branch.abs().sum(1) > 0
    assert abs(kept.double().mean().item() - (1 - rate)) < 0.12
    torch.testing.assert_close(branch[kept], full[kept] / (1 - rate), rtol=1e-4, atol=1e-5)


def test_drop_path_rates_rise_linearly():
    """The first block never drops; evaluation never does."""
    arch = dict(depths=[1, 1, 2, 1], channels=[4, 4, 4, 8])
    nets = [ConvNeXtV2(arch=arch, drop_path_rate=rate) for rate in (0.0, 0.9)]
    nets[1].load_state_dict(nets[0].state_dict())
    x_NCHW = torch.randn(64, 3, 32, 32)
    assert torch.equal(nets[0].eval()(x_NCHW)[0], nets[1].eval()(x_NCHW)[0])

    dropped = []
    for stage in nets[1].stages:
        for block in stage:
            block.register_forward_hook(
                lambda _, args, out: dropped.append((args[0] == out).flatten(1).all(1).double())
            )
    nets[1].train()
    for _ in range(30):
        nets[1](x_NCHW)
    frequency = [torch.cat(dropped[b::5]).mean().item() for b in range(5)]
    assert frequency[0] == 0
    assert frequency == pytest.approx([0, 0.225, 0.45, 0.675, 0.9], abs=0.05)


@pytest.mark.parametrize("layout", ["dense", "packed", "masked"])
def test_compiled_blocks_give_the_same_numbers(
    layout, tiny_arch, randomize_grn, random_mask, relative_error
):
    net = randomize_grn(ConvNeXtV2(arch=tiny_arch))
    blocks = [block for stage in net.stages for block in stage]
    check_compile("aot_eager", net, blocks, layout, random_mask, relative_error)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dense", "packed"])
def test_inductor_gives_the_same_numbers(
    layout, tiny_arch, randomize_grn, random_mask, relative_error
):
    """Two stages are enough to meet two shapes, and keep the compilation short."""
    net = randomize_grn(ConvNeXtV2(arch=tiny_arch))
    blocks = [net.stages[1][0], net.stages[3][0]]
    check_compile("inductor", net, blocks, layout, random_mask, relative_error)


def check_compile(backend, net, blocks, layout, random_mask, relative_error) -> None:
    """Features and gradients before and after compiling the blocks in place, for static shapes.

    With torch 2.11's dynamic shapes inductor fails on a dense block ("cannot determine truth value
    of Relational").
    """
    torch._dynamo.reset()
    mask = () if layout == "dense" else (random_mask([1, 3], (2, 2)),)
    if mask:
        net.mask_layout = layout
    x_NCHW = torch.randn(2, 3, 64, 64)

    def step() -> dict[str, Tensor]:
        net.zero_grad()
        (feature,) = net(x_NCHW, *mask)
        feature.square().sum().backward()
        return {"feature": feature} | {n: p.grad.clone() for n, p in net.named_parameters()}

    expected = step()
    keys = list(net.state_dict())
    for block in blocks:
        block.compile(backend=backend, fullgraph=True, dynamic=False)
    actual = step()
    assert list(net.state_dict()) == keys
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert max(errors.values()) < 2e-5, errors


BAD_ARGUMENTS = {
    "flag for channels": (dict(arch=dict(depths=(1, 1, 1, 1), channels=(True, 2, 3, 4))), "True"),
    "flag for in_channels": (dict(in_channels=True), "whole number, got True"),
    "flag for out_indices": (dict(out_indices=True), "got True"),
    "unknown arch": (dict(arch="gigantic"), "(?=.*gigantic)(?=.*atto)"),
    "arch without channels": (dict(arch=dict(depths=[1, 1, 1, 1])), "channels"),
    "arch with an unknown key": (
        dict(arch=dict(depths=[1] * 4, channels=[8] * 4, widths=[1])),
        "widths",
    ),
    "arch of unequal lengths": (dict(arch=dict(depths=[1, 1, 1], channels=[8] * 4)), "depths"),
    "arch of no depth": (dict(arch=dict(depths=[1, 0, -1, 1], channels=[8] * 4)), "-1"),
    "out_indices too large": (dict(out_indices=4), "4"),
    "out_indices too small": (dict(out_indices=(0, -5)), "-5"),
    "no out_indices": (dict(out_indices=()), "out_indices"),
    "unknown layout": (dict(mask_layout="sparse"), "(?=.*sparse)(?=.*packed)"),
    "negative drop path": (dict(drop_path_rate=-0.1), r"-0\.1"),
    "drop path of one": (dict(drop_path_rate=1.0), r"1\.0"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named(case, tiny_arch):
    arguments, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        ConvNeXtV2(**{"arch": tiny_arch, **arguments})


def test_bad_layout_assignment_changes_nothing(tiny_arch):
    net = ConvNeXtV2(arch=tiny_arch)
    with pytest.raises(ValueError, match="(?s)(?=.*sparse)(?=.*packed)"):
        net.mask_layout = "sparse"
    assert net.mask_layout == "packed"


BAD_MASKS = {
    "height": ((63, 64), torch.zeros(2, 1, 2, dtype=torch.bool), "63"),
    "width": ((64, 80), torch.zeros(2, 2, 2, dtype=torch.bool), "80"),
    "batch": ((64, 64), torch.zeros(1, 2, 2, dtype=torch.bool), r"1, 2, 2"),
    "grid": ((64, 64), torch.zeros(2, 4, 4, dtype=torch.bool), r"4, 4"),
    "dimensions": ((64, 64), torch.zeros(2, 4, dtype=torch.bool), r"2, 4"),
    "float": ((64, 64), torch.zeros(2, 2, 2), "float32"),
    "integer": ((64, 64), torch.zeros(2, 2, 2, dtype=torch.long), "int64"),
}


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks_are_named(case, layout, tiny_arch):
    size, mask, message = BAD_MASKS[case]
    net = ConvNeXtV2(arch=tiny_arch, mask_layout=layout)
    with pytest.raises(ValueError, match=message):
        net(torch.randn(2, 3, *size), mask)


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_a_sample_without_visible_cell_is_refused(layout, tiny_arch):
    net = ConvNeXtV2(arch=tiny_arch, mask_layout=layout)
    mask_NHW = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask_NHW[1] = True
    with pytest.raises(ValueError, match="(?i)visible"):
        net(torch.randn(2, 3, 64, 64), mask_NHW)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_feature_maps_are_contiguous(masked, tiny_arch, random_mask):
    """Compiled operations downstream, such as mmcv's RoIAlign, take no notice of strides."""
    net = ConvNeXtV2(arch=tiny_arch, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
    mask = (random_mask([2, 3], (2, 3)),) if masked else ()
    features = net(torch.randn(2, 3, 64, 96), *mask)
    assert all(feature.is_contiguous() for feature in features)
