"""Rivals of GRN against their formulas in float64, value by value over visible positions alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from mmconvnextv2.engine.optim_constructors import is_decayed
from mmconvnextv2.nn import GRN, ConvNeXtV2, VisibleCells
from mmconvnextv2.nn.block import Block
from mmconvnextv2.nn.layouts import MASK_LAYOUTS, DenseLayout, MaskedLayout
from mmconvnextv2.nn.response_norms import build_response_norm, check_layout

pytestmark = pytest.mark.unit

# Legend: N sample, C channel, H W rows and columns, P visible positions of one sample.

EPS = 1e-6
CHANNELS = 32

AGGREGATED = {
    "avg": lambda x_PC: x_PC.sum(0) / len(x_PC),
    "l1": lambda x_PC: x_PC.abs().sum(0),
    "l2": lambda x_PC: x_PC.square().sum(0).sqrt(),
    None: lambda x_PC: x_PC,
}
NORMALIZED = {
    "standardize": lambda g: (
        (g - g.mean(-1, True)) / ((g - g.mean(-1, True)).square().mean(-1, True) + EPS).sqrt()
    ),
    "inverse_sum": lambda g: (1 / (g.sum(-1, True) + EPS)).expand_as(g),
    "divisive": lambda g: g / (g.sum(-1, True) / CHANNELS + EPS),
    None: lambda g: g,
}


def grn_variant(norm, x_PC, aggregation="l2", normalization="divisive", residual=True, affine=True):
    response = NORMALIZED[normalization](AGGREGATED[aggregation](x_PC))
    if aggregation is normalization is None:
        response = torch.ones_like(x_PC)
    out = x_PC * response
    if affine:
        out = norm.gamma * out + norm.beta
    return out + x_PC if residual else out


def lrn(norm, x_PC):
    out = torch.empty_like(x_PC)
    for c in range(CHANNELS):
        squares = x_PC[:, max(c - 2, 0) : c + 3].square().sum(1)
        out[:, c] = x_PC[:, c] / (1 + 1e-4 / 5 * squares) ** 0.75
    return out


def ln(norm, x_PC):
    return norm.norm.weight * NORMALIZED["standardize"](x_PC) + norm.norm.bias


def bn(norm, x_PC):
    centred_PC = x_PC - x_PC.mean(0)
    deviation_C = (centred_PC.square().mean(0) + 1e-5).sqrt()
    return norm.norm.weight * centred_PC / deviation_C + norm.norm.bias


def mlp(norm, x_C):
    first, _, second = norm.mlp
    hidden = (first.weight @ x_C + first.bias).clamp(min=0)
    return second.weight @ hidden + second.bias


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def se(norm, x_PC):
    return x_PC * sigmoid(mlp(norm, x_PC.mean(0)))


def cbam(norm, x_PC, positions):
    x_PC = x_PC * sigmoid(mlp(norm, x_PC.mean(0)) + mlp(norm, x_PC.max(0).values))
    out = torch.empty_like(x_PC)
    for p, (row, column) in enumerate(positions):
        total = 0.0
        for q, (other_row, other_column) in enumerate(positions):
            y, x = other_row - row + 3, other_column - column + 3
            if 0 <= y < 7 and 0 <= x < 7:
                mean_and_max = torch.stack([x_PC[q].mean(), x_PC[q].max()])
                total = total + norm.conv.weight[0, :, y, x] @ mean_and_max
        out[p] = x_PC[p] * sigmoid(total)
    return out


PARTS = itertools.product(("avg", "l1", "l2", None), ("standardize", "inverse_sum", "divisive"))
VARIANTS = [dict(type="grn", aggregation=g, normalization=n) for g, n in PARTS] + [
    dict(type="grn", normalization=None),
    dict(type="grn", aggregation=None, normalization=None),
    dict(type="grn", residual=False),
    dict(type="grn", affine=False),
    dict(type="grn", residual=False, affine=False),
    "lrn",
    "ln",
    "se",
    "cbam",
]
RIVALS = [*VARIANTS, "bn"]
UNBOUNDED = dict(type="grn", normalization=None)
"""X * G(X): large by itself, and too large for float16."""


def name(config) -> str:
    return config if isinstance(config, str) else "-".join(map(str, config.values()))


def by_formula(config, norm, x_PC, positions):
    if isinstance(config, dict):
        return grn_variant(norm, x_PC, **{k: v for k, v in config.items() if k != "type"})
    if config == "cbam":
        return cbam(norm, x_PC, positions)
    return dict(lrn=lrn, ln=ln, bn=bn, se=se)[config](norm, x_PC)


@pytest.fixture(params=["dense", "masked"])
def scene(request, random_mask):
    """Features as GELU leaves them, their layout, and the visible positions of each sample."""
    x_NHWC = torch.nn.functional.gelu(2 * torch.randn(3, 4, 6, CHANNELS, dtype=torch.float64))
    if request.param == "dense":
        visible_NHW = torch.ones(3, 4, 6, dtype=torch.bool)
        return x_NHWC, DenseLayout(), visible_NHW
    mask_NHW = random_mask([1, 4, 2], (2, 3))
    layout = MaskedLayout(VisibleCells.from_mask(mask_NHW))  # stage 3: 2 x 2 positions a cell
    visible_NHW = ~mask_NHW.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return x_NHWC * visible_NHW[..., None], layout, visible_NHW


def awake(config, randomize_grn):
    """In float64, with random parameters."""
    parts = nn.ModuleDict(dict(grn=build_response_norm(config, CHANNELS)))  # for its name
    return randomize_grn(parts)["grn"].double()


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_each_sample_follows_the_formula(config, scene, randomize_grn):
    x_NHWC, layout, visible_NHW = scene
    norm = awake(config, randomize_grn)
    out_NHWC = norm(x_NHWC, layout)
    assert out_NHWC.shape == x_NHWC.shape
    for x_HWC, out_HWC, visible_HW in zip(x_NHWC, out_NHWC, visible_NHW, strict=True):
        expected_PC = by_formula(config, norm, x_HWC[visible_HW], visible_HW.nonzero().tolist())
        torch.testing.assert_close(out_HWC[visible_HW], expected_PC, rtol=1e-9, atol=1e-9)
    assert torch.isfinite(out_NHWC).all(), "removed positions too: a NaN there spoils gradients"


def test_batch_norm_sees_the_visible_positions_of_the_batch(scene, randomize_grn):
    x_NHWC, layout, visible_NHW = scene
    norm = awake("bn", randomize_grn)
    rows_PC = x_NHWC[visible_NHW]
    mean_C, variance_C = rows_PC.mean(0), rows_PC.var(0, correction=0)
    for mean, variance in ((mean_C, variance_C), (0.1 * mean_C, 0.9 + 0.1 * rows_PC.var(0))):
        expected_PC = (rows_PC - mean) / (variance + 1e-5).sqrt()
        expected_PC = norm.norm.weight * expected_PC + norm.norm.bias
        out_PC = norm(x_NHWC, layout)[visible_NHW]
        torch.testing.assert_close(out_PC, expected_PC, rtol=1e-9, atol=1e-9)
        norm.eval()  # running statistics next, after one update of momentum 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [c for c in RIVALS if c != UNBOUNDED], ids=name)
def test_norms_do_not_overflow_in_half_precision(config, dtype, randomize_grn, relative_error):
    """Squares of 300 and sums over 64 positions are beyond float16's largest number of 65504."""
    norm = awake(config, randomize_grn)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(parameter.to(dtype))
    x_NHWC = (2000 if config != "lrn" else 300) * torch.randn(1, 8, 8, CHANNELS).abs()
    x_NHWC = (x_NHWC * torch.linspace(0.2, 1, CHANNELS)).to(dtype)
    grid = list(itertools.product(range(8), range(8)))
    expected = by_formula(config, norm, x_NHWC.double().flatten(0, 2), grid).view(x_NHWC.shape)
    out = norm.to(dtype)(x_NHWC)
    assert out.dtype == dtype
    # A gate's own layers compute in half precision; norms lose the rounding of their result.
    gates = config in ("se", "cbam")
    assert relative_error(out, expected) < (8 if gates else 2) * torch.finfo(dtype).eps


# The default.


def test_the_default_is_grn_itself():
    assert type(Block(8).grn) is GRN
    assert Block(8, use_grn=False).grn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_variant_with_grns_parts_is_grn_bit_by_bit(dtype, randomize_grn):
    grn = randomize_grn(GRN(CHANNELS)).to(dtype)
    variant = build_response_norm("grn", CHANNELS).to(dtype)
    variant.load_state_dict(grn.state_dict())
    x_NHWC = torch.randn(2, 5, 3, CHANNELS, dtype=dtype)
    assert torch.equal(variant(x_NHWC), grn(x_NHWC))


@pytest.mark.parametrize("masked", [False, True])
def test_a_network_of_such_variants_is_the_default_one(
    masked, tiny_arch, random_mask, randomize_grn, relative_error
):
    torch.manual_seed(1)
    default = ConvNeXtV2(tiny_arch, mask_layout="masked")
    torch.manual_seed(1)
    variant = ConvNeXtV2(tiny_arch, mask_layout="masked", response_norm="grn")
    assert list(default.state_dict()) == list(variant.state_dict())
    assert all(map(torch.equal, default.state_dict().values(), variant.state_dict().values()))
    variant.load_state_dict(randomize_grn(default).state_dict())
    mask = (random_mask([2, 5], (2, 3)),) if masked else ()
    x_NCHW = torch.randn(2, 3, 64, 96)
    assert relative_error(variant(x_NCHW, *mask)[0], default(x_NCHW, *mask)[0]) < 1e-5


# In the network.


@pytest.mark.parametrize("config", [dict(type="grn", residual=False), "bn"], ids=name)
def test_the_block_applies_it_after_gelu(config, randomize_grn):
    block = randomize_grn(Block(8, response_norm=config)).double()
    x_NHWC = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    hidden = block.depthwise_conv(x_NHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    hidden = nn.functional.gelu(block.pointwise_conv1(block.norm(hidden)))
    expected = x_NHWC + block.pointwise_conv2(block.grn(hidden))
    torch.testing.assert_close(block(x_NHWC, DenseLayout()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", RIVALS, ids=name)
def test_nothing_leaks_and_everything_learns(config, tiny_arch, random_mask, randomize_grn):
    net = randomize_grn(
        ConvNeXtV2(tiny_arch, mask_layout="masked", response_norm=config, output_norms=False)
    ).double()
    mask_NHW = random_mask([2, 5], (2, 3))
    x_NCHW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    removed_NHW = mask_NHW.repeat_interleave(32, 1).repeat_interleave(32, 2)
    other_NCHW = torch.where(removed_NHW[:, None], 100 * torch.randn_like(x_NCHW), x_NCHW)
    features = net(x_NCHW, mask_NHW)[0]
    features.square().sum().backward()
    for key, parameter in net.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), key
    with torch.no_grad():
        # The running statistics of BatchNorm move in training and not what is computed there.
        assert torch.equal(net(other_NCHW, mask_NHW)[0], features)
        if config != "bn":
            alone = net(x_NCHW[:1], mask_NHW[:1])[0]
            torch.testing.assert_close(alone, features[:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", ["packed", "minkowski", "triton"])
def test_layouts_of_visible_cells_alone_refuse_by_name(layout):
    with pytest.raises(ValueError, match=f"response_norm.*mask_layout='{layout}'.*'masked'"):
        check_layout(MASK_LAYOUTS[layout])


def test_a_masked_call_is_refused_and_a_dense_one_is_not(tiny_arch, random_mask):
    net = ConvNeXtV2(tiny_arch, response_norm="se")
    x_NCHW = torch.randn(1, 3, 64, 64)
    net(x_NCHW)  # the mask layout does not matter here
    with pytest.raises(ValueError, match="mask_layout='packed'"):
        net(x_NCHW, random_mask([2], (2, 2)))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("groupnorm", {}, "response_norm must be None .*lrn, bn.*'groupnorm'"),
        (dict(aggregation="l1"), {}, "response_norm must be None"),
        (dict(type="grn", aggregation="l3"), {}, "aggregation must be None or .*'l3'"),
        (dict(type="grn", normalization="max"), {}, "normalization must be None or .*'max'"),
        (dict(type="se", reduction=0), {}, "reduction must be at least 1"),
        ("se", dict(use_grn=False), "response_norm='se' takes GRN's place.*use_grn=False"),
    ],
)
def test_bad_arguments_are_refused(config, options, message, tiny_arch):
    with pytest.raises(ValueError, match=message):
        ConvNeXtV2(tiny_arch, response_norm=config, **options)


def test_an_argument_that_a_rival_does_not_take_is_named(tiny_arch):
    with pytest.raises(TypeError, match="reduction"):
        ConvNeXtV2(tiny_arch, response_norm=dict(type="ln", reduction=4))


@pytest.mark.parametrize("config", RIVALS, ids=name)
def test_what_scales_and_shifts_is_not_decayed(config):
    norm = build_response_norm(config, CHANNELS)
    for module in norm.modules():
        for key, parameter in module.named_parameters(recurse=False):
            assert is_decayed(module, key) is (parameter.ndim > 1), key


# Base without head and GRN has 87,690,752 - 2 * (4C summed over blocks); see the paper's table 2e.
HIDDEN = [4 * c for c, depth in ((128, 3), (256, 3), (512, 27), (1024, 3)) for _ in range(depth)]
GATES = sum(2 * k * (k // 16) + k // 16 + k for k in HIDDEN)


@pytest.mark.parametrize(
    ("config", "more", "millions"),
    [
        (None, 2 * sum(HIDDEN), {89}),
        (dict(type="grn", aggregation="l1"), 2 * sum(HIDDEN), {89}),
        (dict(type="grn", affine=False), 0, {89}),
        ("lrn", 0, {89}),
        ("bn", 2 * sum(HIDDEN), {89}),
        ("ln", 2 * sum(HIDDEN), {89}),
        ("se", GATES, {109, 110}),
        ("cbam", GATES + 36 * 2 * 49, {109, 110}),
    ],
)
def test_base_has_the_papers_number_of_parameters(config, more, millions):
    with torch.device("meta"):
        net = ConvNeXtV2("base", response_norm=config)
    head = 1000 * 1024 + 1000
    count = sum(parameter.numel() for parameter in net.parameters()) + head
    assert count == 88_717_800 - 2 * sum(HIDDEN) + more
    assert round(count / 1e6) in millions
