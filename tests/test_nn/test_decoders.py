"""FCMAE's other decoders and its dense encoder: formulas in float64, no leaks, bad input."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from reference import linear, section
from torch import Tensor

from mmconvnextv2.nn import FCMAE, ConvNeXtV2, FCMAEDecoder, FCMAEHead
from mmconvnextv2.nn.decoder_transformer import FCMAETransformerDecoder, sincos_positions
from mmconvnextv2.nn.decoder_unet import FCMAEUNetDecoder

pytestmark = pytest.mark.unit

# Every decoder at the channels of `tiny_arch`.
DECODERS = {
    "block": lambda: FCMAEDecoder(32, num_channels=16),
    "unet": lambda: FCMAEUNetDecoder(32, num_channels=32),
    "unet-skips": lambda: FCMAEUNetDecoder([8, 16, 24, 32], num_channels=32),
    "transformer": lambda: FCMAETransformerDecoder(32, num_channels=16, depth=2, num_heads=4),
}


def draw_maps(batch: int, grid: tuple[int, int]) -> tuple[Tensor, ...]:
    """Random float64 features of the four stages of `tiny_arch`, finest first."""
    return tuple(
        torch.randn(batch, channels, grid[0] * side, grid[1] * side, dtype=torch.float64)
        for channels, side in zip((8, 16, 24, 32), (8, 4, 2, 1), strict=True)
    )


def takes(decoder: torch.nn.Module, maps: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """What of the four stages' features a decoder takes."""
    return maps[-1] if isinstance(decoder.in_channels, int) else maps


def build(name: str, tiny_arch, randomize_grn, **kwargs) -> FCMAE:
    encoder = ConvNeXtV2(
        tiny_arch,
        out_indices=(0, 1, 2, 3) if name == "unet-skips" else -1,
        gap_before_final_norm=False,
        output_norms=False,
    )
    return randomize_grn(FCMAE(encoder, DECODERS[name](), FCMAEHead(), **kwargs)).double()


# The formulas, one image at a time, each position by itself.


def unet(state: dict[str, Tensor], maps: list[Tensor], mask_HW: Tensor) -> Tensor:
    """Patches (L, P) of one image; `maps` are the stages' features (C, h, w), deepest first."""
    height, width = mask_HW.shape
    before: dict[tuple[int, int], int] = {}
    rows = None
    for i, side in enumerate((1, 2, 4, 8)):
        positions = reference.visible_positions(height * side, width * side, 32 // side, None)
        if rows is not None:
            up = linear(section(state, f"upsamplings.{i - 1}."), rows).unflatten(1, (2, 2, -1))
            rows = torch.stack([up[before[y // 2, x // 2], y % 2, x % 2] for y, x in positions])
        entry = section(state, f"inputs.{i}.")
        if entry:
            seen = linear(section(entry, "projection."), maps[i].flatten(1).T)
            given = torch.stack(
                [
                    entry["mask_token"] if mask_HW[y // side, x // side] else seen[row]
                    for (y, x), row in positions.items()
                ]
            )
            rows = given if rows is None else rows + given
        rows = reference.block(section(state, f"blocks.{i}."), positions, rows)
        before = positions
    pixels = linear(section(state, "prediction."), rows).unflatten(1, (4, 4, -1))
    image_CHW = pixels.new_zeros(pixels.shape[-1], 32 * height, 32 * width)
    for (y, x), row in before.items():
        image_CHW[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = pixels[row].permute(2, 0, 1)
    return reference.patches(image_CHW[None])[0]


def position(row: int, column: int, channels: int) -> list[float]:
    """Sines and cosines of the row, then of the column, at falling frequencies."""
    frequencies = [10_000 ** (-i / (channels // 4)) for i in range(channels // 4)]
    return [
        wave(index * frequency)
        for index in (row, column)
        for wave in (math.sin, math.cos)
        for frequency in frequencies
    ]


def attention(state: dict[str, Tensor], x_LD: Tensor, heads: int) -> Tensor:
    """Multi-head self-attention, head by head."""
    qkv = linear(section(state, "qkv."), x_LD).chunk(3, dim=1)
    results = []
    for q, k, v in zip(*(part.chunk(heads, dim=1) for part in qkv), strict=True):
        scores = (q @ k.T / math.sqrt(q.shape[1])).exp()
        results.append(scores / scores.sum(1, keepdim=True) @ v)
    return linear(section(state, "proj."), torch.cat(results, 1))


def transformer(state: dict[str, Tensor], map_CHW: Tensor, mask_HW: Tensor) -> Tensor:
    """Patches (L, P) of one image."""
    _, height, width = map_CHW.shape
    channels = state["mask_token"].numel()
    cells = [(y, x) for y in range(height) for x in range(width)]
    seen = linear(section(state, "projection."), map_CHW.flatten(1).T)
    x_LD = torch.stack(
        [state["mask_token"] if mask_HW[c] else seen[i] for i, c in enumerate(cells)]
    )
    x_LD = x_LD + torch.tensor([position(*c, channels) for c in cells], dtype=x_LD.dtype)
    for b in range(reference.count(state, "blocks.")):
        block = section(state, f"blocks.{b}.")
        inner = reference.layer_norm(section(block, "norm1."), x_LD)
        x_LD = x_LD + attention(block, inner, heads=4)
        inner = linear(section(block, "fc1."), reference.layer_norm(section(block, "norm2."), x_LD))
        x_LD = x_LD + linear(section(block, "fc2."), reference.gelu(inner))
    return linear(
        section(state, "prediction."), reference.layer_norm(section(state, "norm."), x_LD)
    )


FORMULAS = {
    "unet": lambda state, maps, mask_HW: unet(state, maps[::-1], mask_HW),
    "unet-skips": lambda state, maps, mask_HW: unet(state, maps[::-1], mask_HW),
    "transformer": lambda state, maps, mask_HW: transformer(state, maps[-1], mask_HW),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_agrees_with_its_formula_and_reaches_every_parameter(
    name, randomize_grn, random_mask, relative_error
):
    decoder = randomize_grn(DECODERS[name]()).double()
    maps = draw_maps(2, (1, 2))
    mask_NHW = random_mask([1, 1], (1, 2))
    weight = torch.randn(2, 2, 3072, dtype=torch.float64)
    actual = decoder(takes(decoder, maps), mask_NHW)
    assert actual.shape == (2, 1, 2, 3072)
    (actual.flatten(1, 2) * weight).sum().backward()

    state = reference.in_float64(decoder.state_dict())
    expected = torch.stack(
        [FORMULAS[name](state, [m[n] for m in maps], mask_NHW[n]) for n in range(2)]
    )
    (expected * weight).sum().backward()

    # The embeddings of positions are float32.
    tolerance = 1e-5 if name == "transformer" else 1e-10
    assert relative_error(actual.flatten(1, 2), expected) < tolerance
    for key, parameter in decoder.named_parameters():
        # The keys' bias adds the same to every score of a query, which softmax does not see.
        gradient, wanted = parameter.grad, state[key].grad
        if key.endswith("qkv.bias"):
            gradient, wanted = (torch.cat(g.chunk(3)[::2]) for g in (gradient, wanted))
        assert wanted.norm() > 0, key
        assert relative_error(gradient, wanted) < tolerance, key


def test_positions_are_those_of_mae():
    theirs = build_2d_sincos_position_embedding(5, 16)[0].view(5, 5, 16)
    torch.testing.assert_close(sincos_positions(5, 5, 16), theirs)
    wide = sincos_positions(2, 7, 16)
    assert wide.shape == (2, 7, 16)
    torch.testing.assert_close(wide[1, 6], torch.tensor(position(1, 6, 16)))


@pytest.mark.parametrize("name", DECODERS)
def test_features_of_removed_cells_are_ignored(name, randomize_grn, random_mask):
    decoder = randomize_grn(DECODERS[name]()).double()
    mask_NHW = random_mask([1, 4], (2, 3))
    maps = draw_maps(2, (2, 3))
    others = []
    for features_NCHW in maps:
        side = features_NCHW.shape[2] // 2
        removed = mask_NHW.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
        others.append(features_NCHW.masked_fill(removed, 1e3))
    assert torch.equal(
        decoder(takes(decoder, maps), mask_NHW), decoder(takes(decoder, tuple(others)), mask_NHW)
    )


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", DECODERS)
def test_pixels_of_removed_cells_do_not_reach_the_prediction(
    name, sparse, tiny_arch, randomize_grn, random_mask
):
    model = build(name, tiny_arch, randomize_grn, sparse_encoder=sparse)
    x_NCHW = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    mask_NHW = random_mask([2], (2, 2))

    def predict(x_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return model.forward_decoder(model.forward_encoder(x_NCHW, mask_NHW), mask_NHW)

    before = predict(x_NCHW)
    for removed in (True, False):
        other = x_NCHW.clone()
        row, column = (mask_NHW[0] == removed).nonzero()[0]
        other[0, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] += 1
        assert torch.equal(predict(other), before) == removed


@pytest.mark.parametrize("name", ["unet-skips", "transformer"])
def test_a_whole_step_reaches_every_parameter(name, tiny_arch, randomize_grn, random_mask):
    """Distributed training runs with find_unused_parameters=False."""
    model = build(name, tiny_arch, randomize_grn)
    x_NCHW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    model(x_NCHW, mask=random_mask([1, 3], (2, 3)), mode="loss")["loss"].backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())


def test_without_sparse_encoding_the_dense_encoder_sees_zeros(
    tiny_arch, randomize_grn, random_mask, relative_error
):
    model = build("block", tiny_arch, randomize_grn, sparse_encoder=False)
    x_NCHW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mask_NHW = random_mask([1, 4], (2, 3))
    loss = model(x_NCHW, mask=mask_NHW, mode="loss")["loss"]
    loss.backward()

    zeroed_NCHW = x_NCHW.clone()
    for n, row, column in mask_NHW.nonzero():
        zeroed_NCHW[n, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 0
    state = reference.in_float64(model.state_dict())
    features = reference.encode(section(state, "backbone."), zeroed_NCHW)[-1]
    prediction = reference.decode(section(state, "neck."), features, mask_NHW)
    expected = reference.loss(prediction, x_NCHW, mask_NHW)
    expected.backward()

    assert relative_error(model.forward_encoder(x_NCHW, mask_NHW), features) < 1e-12
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    errors = {name: relative_error(gradients[name], state[name].grad) for name in state}
    assert max(errors.values()) < 1e-10, errors


def test_without_sparse_encoding_a_mask_still_has_to_fit(tiny_arch, randomize_grn, random_mask):
    model = build("block", tiny_arch, randomize_grn, sparse_encoder=False)
    with pytest.raises(ValueError, match=r"\(1, 2, 2\).*\(1, 2, 3\)"):
        model(torch.randn(1, 3, 64, 64).double(), mask=random_mask([2], (2, 3)), mode="loss")


@pytest.mark.parametrize("name", ["unet-skips", "transformer"])
def test_initialisation(name):
    """Truncated normal of std .02 for weights and tokens, zero biases, as in FCMAE's own."""
    decoder = DECODERS[name]()
    for key, value in decoder.state_dict().items():
        if key.endswith("bias") or ".grn." in key:
            assert (value == 0).all(), key
        elif "norm" in key:
            assert (value == 1).all(), key
        else:
            tolerance = 4 * 0.02 / (2 * value.numel()) ** 0.5
            assert value.std().item() == pytest.approx(0.02, abs=tolerance), key


@pytest.mark.parametrize(
    ("decoder", "options", "message"),
    [
        (FCMAEUNetDecoder, dict(in_channels=[16, 32]), r"or 4 .*\[16, 32\]"),
        (FCMAEUNetDecoder, dict(in_channels=0), "in_channels must be at least 1"),
        (FCMAEUNetDecoder, dict(in_channels=32, num_channels=12), "multiple of 8, got 12"),
        (FCMAETransformerDecoder, dict(in_channels=32, num_channels=6, num_heads=2), "of 4.*got 6"),
        (FCMAETransformerDecoder, dict(in_channels=32, num_heads=24), "num_heads=24"),
    ],
)
def test_bad_arguments(decoder, options, message):
    with pytest.raises(ValueError, match=message):
        decoder(**options)


@pytest.mark.parametrize(
    ("out_indices", "channels", "message"),
    [
        ((0, 1, 2, 3), [8, 16, 24, 64], r"\(8, 16, 24, 32\).*four stages.*\(8, 16, 24, 64\)"),
        (-1, [8, 16, 24, 32], r"out_indices=\(0, 1, 2, 3\), got \(3,\)"),
    ],
)
def test_a_decoder_with_skips_needs_every_stage(out_indices, channels, message, tiny_arch):
    encoder = ConvNeXtV2(
        tiny_arch, out_indices=out_indices, gap_before_final_norm=False, output_norms=False
    )
    with pytest.raises(ValueError, match=message):
        FCMAE(encoder, FCMAEUNetDecoder(channels, num_channels=16), FCMAEHead())
