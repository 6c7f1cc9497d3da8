"""An independent, slow FCMAE in float64: loops over visible positions, from a state_dict alone.

Nothing here is shared with the package and nothing is multiplied by a mask: what is removed simply
does not exist. Sources: ConvNeXt V2 (arXiv 2301.00808), section 3 (FCMAE) and Algorithm 1 (GRN).

Legend of the shape suffixes: N sample, C channel, H W rows and columns of pixels or positions,
P visible positions of one sample, K the 49 taps of a depthwise kernel, L cells of one sample,
D values of one patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

CELL = 32
STRIDES = (4, 8, 16, 32)
EPS = 1e-6

State = Mapping[str, Tensor]
Positions = dict[tuple[int, int], int]
"""(row, column) of a visible position -> its row in a (P, C) matrix."""


def section(state: State, prefix: str) -> dict[str, Tensor]:
    """The entries of `state` whose key starts with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def in_float64(state: State) -> dict[str, Tensor]:
    """Detached float64 copies that can collect gradients, under the same keys."""
    return {key: value.detach().double().requires_grad_() for key, value in state.items()}


def linear(state: State, x_PC: Tensor) -> Tensor:
    """A pointwise layer; the weight may be (out, in) or (out, in, 1, 1)."""
    return x_PC @ state["weight"].flatten(1).T + state["bias"]


def layer_norm(state: State, x_PC: Tensor) -> Tensor:
    """Layer normalisation over the channels of each position."""
    centred_PC = x_PC - x_PC.mean(1, keepdim=True)
    variance_P1 = (centred_PC**2).mean(1, keepdim=True)
    return centred_PC / torch.sqrt(variance_P1 + EPS) * state["weight"] + state["bias"]


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, x times the normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def grn(state: State, x_PC: Tensor) -> Tensor:
    """Algorithm 1 for one sample, over the positions that exist."""
    norm_C = torch.linalg.vector_norm(x_PC, dim=0)
    response_C = norm_C / (norm_C.mean() + EPS)
    return state["gamma"] * (x_PC * response_C) + state["beta"] + x_PC


def visible_positions(height: int, width: int, stride: int, mask_HW: Tensor | None) -> Positions:
    """Every position of a height x width map at `stride` whose cell is not removed."""
    side = CELL // stride
    visible = [
        (y, x)
        for y in range(height)
        for x in range(width)
        if mask_HW is None or not mask_HW[y // side, x // side]
    ]
    return {position: row for row, position in enumerate(visible)}


def depthwise(state: State, positions: Positions, x_PC: Tensor) -> Tensor:
    """At each position, the sum over those of its 7x7 neighbours that exist."""
    weight_KC = state["weight"].flatten(1).T
    out = []
    for y, x in positions:
        taps, rows = [], []
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                if (y + dy, x + dx) in positions:
                    taps.append((dy + 3) * 7 + dx + 3)
                    rows.append(positions[y + dy, x + dx])
        out.append((weight_KC[taps] * x_PC[rows]).sum(0) + state["bias"])
    return torch.stack(out)


def block(state: State, positions: Positions, x_PC: Tensor) -> Tensor:
    """One ConvNeXt V2 block without drop path."""
    y_PC = depthwise(section(state, "depthwise_conv."), positions, x_PC)
    y_PC = layer_norm(section(state, "norm."), y_PC)
    y_PC = gelu(linear(section(state, "pointwise_conv1."), y_PC))
    y_PC = grn(section(state, "grn."), y_PC)
    return x_PC + linear(section(state, "pointwise_conv2."), y_PC)


def gather_squares(source_CHW: Tensor, positions: Positions, side: int) -> Tensor:
    """One row for each position: the side x side square it covers in the source, C first."""
    squares = [
        source_CHW[:, y * side : (y + 1) * side, x * side : (x + 1) * side].flatten()
        for y, x in positions
    ]
    return torch.stack(squares)


def scatter(x_PC: Tensor, positions: Positions, height: int, width: int) -> Tensor:
    """A (C, H, W) map with the rows of `x_PC` at their positions and zeros elsewhere."""
    row_HW = torch.full((height, width), len(positions))
    for (y, x), row in positions.items():
        row_HW[y, x] = row
    rows_and_zero = torch.cat([x_PC, x_PC.new_zeros(1, x_PC.shape[1])])
    return rows_and_zero[row_HW].permute(2, 0, 1)


def encode_sample(
    state: State, image_CHW: Tensor, mask_HW: Tensor | None
) -> list[tuple[Positions, Tensor, int, int]]:
    """Raw output of the four stages of one sample: positions, (P, C) rows, map height and width."""
    outputs = []
    source_CHW, height, width = image_CHW, *image_CHW.shape[1:]
    for i, stride in enumerate(STRIDES):
        side = 4 if i == 0 else 2
        height, width = height // side, width // side
        positions = visible_positions(height, width, stride, mask_HW)
        layers = section(state, f"downsample_layers.{i}.")
        conv, norm = ("0.", "1.") if i == 0 else ("1.", "0.")
        rows = gather_squares(source_CHW, positions, side)
        if i > 0:  # the rows hold C x 2 x 2 values: normalise each of the four positions
            channels = source_CHW.shape[0]
            fine = rows.view(-1, channels, 4).transpose(1, 2).reshape(-1, channels)
            fine = layer_norm(section(layers, norm), fine)
            rows = fine.view(-1, 4, channels).transpose(1, 2).flatten(1)
        rows = linear(section(layers, conv), rows)
        if i == 0:
            rows = layer_norm(section(layers, norm), rows)
        for b in range(count(state, f"stages.{i}.")):
            rows = block(section(state, f"stages.{i}.{b}."), positions, rows)
        outputs.append((positions, rows, height, width))
        source_CHW = scatter(rows, positions, height, width)
    return outputs


def count(state: State, prefix: str) -> int:
    """How many different indices follow `prefix` in the keys."""
    return len({key.split(".")[0] for key in section(state, prefix)})


def encode(
    state: State,
    x_NCHW: Tensor,
    mask_NHW: Tensor | None = None,
    *,
    gap: bool = False,
) -> list[Tensor]:
    """Features of all four stages, output norms applied where the state has them.

    Args:
        state: float64 parameters of a backbone, keys as mmpretrain's ConvNeXt with GRN.
        x_NCHW: float64 images.
        mask_NHW: bool, True = removed; None keeps everything.
        gap: average the visible positions before the norm and return (N, C).

    Returns:
        Four tensors (N, C, H, W), zero where removed, or (N, C) with `gap`.
    """
    samples: list[list[Tensor]] = []
    for n, image_CHW in enumerate(x_NCHW):
        mask_HW = None if mask_NHW is None else mask_NHW[n]
        maps = []
        for i, (positions, rows, h, w) in enumerate(encode_sample(state, image_CHW, mask_HW)):
            rows = rows.mean(0, keepdim=True) if gap else rows
            norm = section(state, f"norm{i}.")
            rows = layer_norm(norm, rows) if norm else rows
            maps.append(rows[0] if gap else scatter(rows, positions, h, w))
        samples.append(maps)
    return [torch.stack(stage) for stage in zip(*samples, strict=True)]


def decode(state: State, features_NCHW: Tensor, mask_NHW: Tensor) -> Tensor:
    """Predicted patches (N, L, D), cells in row-major order."""
    predictions = []
    for x_CHW, mask_HW in zip(features_NCHW, mask_NHW, strict=True):
        height, width = mask_HW.shape
        positions = visible_positions(height, width, CELL, None)
        projected = linear(section(state, "projection."), gather_squares(x_CHW, positions, 1))
        token = state["mask_token"].flatten()
        rows = torch.stack([token if mask_HW[p] else projected[r] for p, r in positions.items()])
        for b in range(count(state, "blocks.")):
            rows = block(section(state, f"blocks.{b}."), positions, rows)
        predictions.append(linear(section(state, "prediction."), rows))
    return torch.stack(predictions)


def patches(x_NCHW: Tensor, size: int = CELL) -> Tensor:
    """Patches (N, L, D) read value by value: D runs over row, column, then channel."""
    n, channels, height, width = x_NCHW.shape
    values_NHWC = x_NCHW.permute(0, 2, 3, 1)
    out = []
    for y in range(0, height, size):
        for x in range(0, width, size):
            pixels = [
                values_NHWC[:, y + p, x + q, c]
                for p in range(size)
                for q in range(size)
                for c in range(channels)
            ]
            out.append(torch.stack(pixels, 1))
    return torch.stack(out, 1)


def loss(
    pred_NLD: Tensor, x_NCHW: Tensor, mask_NHW: Tensor, *, norm_pix_loss: bool = True
) -> Tensor:
    """Mean squared error on removed cells, against patches of zero mean and unit variance."""
    target_NLD = patches(x_NCHW)
    errors = []
    for n, mask_L in enumerate(mask_NHW.flatten(1)):
        for cell, removed in enumerate(mask_L.tolist()):
            if removed:
                target_D = target_NLD[n, cell]
                if norm_pix_loss:
                    variance = target_D.var(correction=1)
                    target_D = (target_D - target_D.mean()) / torch.sqrt(variance + EPS)
                errors.append(((pred_NLD[n, cell] - target_D) ** 2).mean())
    return torch.stack(errors).mean()


def fcmae_loss(
    state: State, x_NCHW: Tensor, mask_NHW: Tensor, *, norm_pix_loss: bool = True
) -> Tensor:
    """The whole step from a state_dict with `backbone.` and `neck.` keys to the scalar loss."""
    features = encode(section(state, "backbone."), x_NCHW, mask_NHW)[-1]
    pred_NLD = decode(section(state, "neck."), features, mask_NHW)
    return loss(pred_NLD, x_NCHW, mask_NHW, norm_pix_loss=norm_pix_loss)
