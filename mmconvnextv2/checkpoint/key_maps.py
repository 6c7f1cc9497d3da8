"""How each publisher names and shapes the tensors of a ConvNeXt V2: one table a publisher.

A row pairs the name of a tensor here, in a file without the prefix ``backbone.``, with the name at
the publisher. Placeholders, the same on both sides of a row:

    {p} weight or bias    {s} stage 0-3    {d} stage 1-3    {b} position in a sequence    {n} 1 or 2

What stands in square brackets may be missing in a file and is always written. A tensor that has no
row in a table has no place at that publisher. Shapes are ours unless the row names a `FORMS`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Row(NamedTuple):
    """One kind of tensor.

    Attributes:
        ours: its name here.
        theirs: its name at the publisher.
        form: its shape at the publisher, a key of `FORMS` or `CONV_IN_SMALL_SIZES`.
    """

    ours: str
    theirs: str
    form: str = "same"


CONV_IN_SMALL_SIZES = "1x1 convolution in TIMM_CONV_SIZES, linear in others"

OURS_WITHOUT_DECODER = (
    Row("downsample_layers.{s}.{b}.{p}", "[backbone.]downsample_layers.{s}.{b}.{p}"),
    Row("stages.{s}.{b}.depthwise_conv.{p}", "[backbone.]stages.{s}.{b}.depthwise_conv.{p}"),
    Row("stages.{s}.{b}.norm.{p}", "[backbone.]stages.{s}.{b}.norm.{p}"),
    Row("stages.{s}.{b}.pointwise_conv{n}.{p}", "[backbone.]stages.{s}.{b}.pointwise_conv{n}.{p}"),
    Row("stages.{s}.{b}.grn.gamma", "[backbone.]stages.{s}.{b}.grn.gamma"),
    Row("stages.{s}.{b}.grn.beta", "[backbone.]stages.{s}.{b}.grn.beta"),
    Row("norm{s}.{p}", "[backbone.]norm{s}.{p}"),
    Row("head.fc.{p}", "head.fc.{p}"),
)

OURS = (
    *OURS_WITHOUT_DECODER,
    Row("neck.projection.{p}", "neck.projection.{p}"),
    Row("neck.mask_token", "neck.mask_token"),
    Row("neck.blocks.{b}.depthwise_conv.{p}", "neck.blocks.{b}.depthwise_conv.{p}"),
    Row("neck.blocks.{b}.norm.{p}", "neck.blocks.{b}.norm.{p}"),
    Row("neck.blocks.{b}.pointwise_conv{n}.{p}", "neck.blocks.{b}.pointwise_conv{n}.{p}"),
    Row("neck.blocks.{b}.grn.gamma", "neck.blocks.{b}.grn.gamma"),
    Row("neck.blocks.{b}.grn.beta", "neck.blocks.{b}.grn.beta"),
    Row("neck.prediction.{p}", "neck.prediction.{p}"),
)

OFFICIAL = (
    Row("downsample_layers.{s}.{b}.{p}", "downsample_layers.{s}.{b}.{p}"),
    Row("stages.{s}.{b}.depthwise_conv.{p}", "stages.{s}.{b}.dwconv.{p}"),
    Row("stages.{s}.{b}.norm.{p}", "stages.{s}.{b}.norm.{p}"),
    Row("stages.{s}.{b}.pointwise_conv{n}.{p}", "stages.{s}.{b}.pwconv{n}.{p}"),
    Row("stages.{s}.{b}.grn.gamma", "stages.{s}.{b}.grn.gamma", "(1, 1, 1, C)"),
    Row("stages.{s}.{b}.grn.beta", "stages.{s}.{b}.grn.beta", "(1, 1, 1, C)"),
    Row("norm3.{p}", "norm.{p}"),
    Row("head.fc.{p}", "head.{p}"),
)

# The stem is an ordinary convolution with an ordinary norm there too, and the decoder is dense.
OFFICIAL_SPARSE = (
    Row("downsample_layers.0.{b}.{p}", "[encoder.]downsample_layers.0.{b}.{p}"),
    Row("downsample_layers.{d}.0.{p}", "[encoder.]downsample_layers.{d}.0.ln.{p}"),
    Row(
        "downsample_layers.{d}.1.weight",
        "[encoder.]downsample_layers.{d}.1.kernel",
        "kernel (K, C_in, C_out)",
    ),
    Row("downsample_layers.{d}.1.bias", "[encoder.]downsample_layers.{d}.1.bias", "(1, C)"),
    Row(
        "stages.{s}.{b}.depthwise_conv.weight",
        "[encoder.]stages.{s}.{b}.dwconv.kernel",
        "depthwise kernel (K, C)",
    ),
    Row("stages.{s}.{b}.depthwise_conv.bias", "[encoder.]stages.{s}.{b}.dwconv.bias", "(1, C)"),
    Row("stages.{s}.{b}.norm.{p}", "[encoder.]stages.{s}.{b}.norm.ln.{p}"),
    Row("stages.{s}.{b}.pointwise_conv{n}.{p}", "[encoder.]stages.{s}.{b}.pwconv{n}.linear.{p}"),
    Row("stages.{s}.{b}.grn.gamma", "[encoder.]stages.{s}.{b}.grn.gamma", "(1, C)"),
    Row("stages.{s}.{b}.grn.beta", "[encoder.]stages.{s}.{b}.grn.beta", "(1, C)"),
    Row("neck.projection.weight", "proj.weight", "1x1 convolution"),
    Row("neck.projection.bias", "proj.bias"),
    Row("neck.mask_token", "mask_token", "(1, C, 1, 1)"),
    Row("neck.blocks.{b}.depthwise_conv.{p}", "decoder.{b}.dwconv.{p}"),
    Row("neck.blocks.{b}.norm.{p}", "decoder.{b}.norm.{p}"),
    Row("neck.blocks.{b}.pointwise_conv{n}.{p}", "decoder.{b}.pwconv{n}.{p}"),
    Row("neck.blocks.{b}.grn.gamma", "decoder.{b}.grn.gamma", "(1, 1, 1, C)"),
    Row("neck.blocks.{b}.grn.beta", "decoder.{b}.grn.beta", "(1, 1, 1, C)"),
    Row("neck.prediction.weight", "pred.weight", "1x1 convolution"),
    Row("neck.prediction.bias", "pred.bias"),
)

TIMM = (
    Row("downsample_layers.0.{b}.{p}", "stem.{b}.{p}"),
    Row("downsample_layers.{d}.{b}.{p}", "stages.{d}.downsample.{b}.{p}"),
    Row("stages.{s}.{b}.depthwise_conv.{p}", "stages.{s}.blocks.{b}.conv_dw.{p}"),
    Row("stages.{s}.{b}.norm.{p}", "stages.{s}.blocks.{b}.norm.{p}"),
    Row(
        "stages.{s}.{b}.pointwise_conv{n}.weight",
        "stages.{s}.blocks.{b}.mlp.fc{n}.weight",
        CONV_IN_SMALL_SIZES,
    ),
    Row("stages.{s}.{b}.pointwise_conv{n}.bias", "stages.{s}.blocks.{b}.mlp.fc{n}.bias"),
    Row("stages.{s}.{b}.grn.gamma", "stages.{s}.blocks.{b}.mlp.grn.weight"),
    Row("stages.{s}.{b}.grn.beta", "stages.{s}.blocks.{b}.mlp.grn.bias"),
    Row("norm3.{p}", "head.norm.{p}"),
    Row("head.fc.{p}", "head.fc.{p}"),
)

TRANSFORMERS = (
    Row("downsample_layers.0.0.{p}", "[convnextv2.]embeddings.patch_embeddings.{p}"),
    Row("downsample_layers.0.1.{p}", "[convnextv2.]embeddings.layernorm.{p}"),
    Row(
        "downsample_layers.{d}.{b}.{p}",
        "[convnextv2.]encoder.stages.{d}.downsampling_layer.{b}.{p}",
    ),
    Row(
        "stages.{s}.{b}.depthwise_conv.{p}",
        "[convnextv2.]encoder.stages.{s}.layers.{b}.dwconv.{p}",
    ),
    Row("stages.{s}.{b}.norm.{p}", "[convnextv2.]encoder.stages.{s}.layers.{b}.layernorm.{p}"),
    Row(
        "stages.{s}.{b}.pointwise_conv{n}.{p}",
        "[convnextv2.]encoder.stages.{s}.layers.{b}.pwconv{n}.{p}",
    ),
    Row(
        "stages.{s}.{b}.grn.gamma",
        "[convnextv2.]encoder.stages.{s}.layers.{b}.grn.weight",
        "(1, 1, 1, C)",
    ),
    Row(
        "stages.{s}.{b}.grn.beta",
        "[convnextv2.]encoder.stages.{s}.layers.{b}.grn.bias",
        "(1, 1, 1, C)",
    ),
    Row("norm3.{p}", "[convnextv2.]layernorm.{p}"),
    Row("head.fc.{p}", "classifier.{p}"),
)

TABLES: dict[str, tuple[Row, ...]] = {
    "official": OFFICIAL,
    "official-sparse": OFFICIAL_SPARSE,
    "timm": TIMM,
    "transformers": TRANSFORMERS,
    "mmpretrain": OURS_WITHOUT_DECODER,
    "mmconvnextv2": OURS,
}
"""Rows of each publisher, by its name."""

TASK_PARTS = re.compile(
    r"(neck\.(lateral|fpn)_convs|rpn_head|roi_head|decode_head|auxiliary_head)\."
)
"""What our detectors and segmentors have besides a backbone; no publisher has a place for it."""

TIMM_CONV_SIZES = ("atto", "femto", "pico", "nano")
"""Sizes whose pointwise layers are 1x1 convolutions at timm; linear layers in all others."""

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda tensor: tensor,
    "(1, C)": lambda tensor: tensor[None],
    "(1, 1, 1, C)": lambda tensor: tensor[None, None, None],
    "(1, C, 1, 1)": lambda tensor: tensor[None, :, None, None],
    "1x1 convolution": lambda tensor: tensor[:, :, None, None],
    "kernel (K, C_in, C_out)": lambda weight: _to_kernel(weight),
    "depthwise kernel (K, C)": lambda weight: _to_kernel(weight).squeeze(1),
}
"""From our shape of a tensor to a publisher's."""


def _to_kernel(weight: Tensor) -> Tensor:
    # MinkowskiEngine numbers the offsets of a kernel with the first spatial axis, the row, running
    # fastest; in PyTorch's memory the last, the column, runs fastest. Reversing the four axes
    # exchanges the two and puts the channels last, input before output.
    return weight.permute(3, 2, 1, 0).flatten(0, 1).contiguous()


def to_their_shape(tensor: Tensor, row: Row, conv_mlp: bool) -> Tensor:
    """Give a tensor of ours a publisher's shape.

    Args:
        tensor: the tensor in our shape.
        row: its row in the publisher's table.
        conv_mlp: the size is one of `TIMM_CONV_SIZES`.
    """
    if row.form == CONV_IN_SMALL_SIZES:
        return FORMS["1x1 convolution"](tensor) if conv_mlp else tensor
    return FORMS[row.form](tensor)


def to_our_shape(tensor: Tensor, row: Row, shape: tuple[int, ...] | None) -> Tensor:
    """Give a publisher's tensor our shape.

    Axes of length one may stand anywhere: GRN's parameters are found as (C), (1, C) and
    (1, 1, 1, C), pointwise layers as linear layers and as 1x1 convolutions.

    Args:
        tensor: the tensor as published.
        row: its row in the publisher's table.
        shape: the shape wanted; None where the network has no such tensor.

    Returns:
        The tensor itself where it needs no change or cannot have that shape; a view where axes of
        length one differ; a copy of a kernel.
    """
    if "kernel" in row.form:
        side = math.isqrt(tensor.shape[0]) if tensor.ndim else 0
        if side == 0 or side**2 != tensor.shape[0]:
            return tensor
        kernel = tensor.unflatten(0, (side, side))
        tensor = kernel.permute(*reversed(range(kernel.ndim))).contiguous()
    if shape is None or tensor.shape == shape or _long_axes(tensor.shape) != _long_axes(shape):
        return tensor
    return tensor.reshape(shape)


def _long_axes(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]


def our_name(publisher: str, key: str) -> tuple[str, Row] | None:
    """Translate a publisher's key to our name, and give its row; None for an unknown one."""
    return _translate(publisher, key, theirs=True)


def their_name(publisher: str, name: str) -> tuple[str, Row] | None:
    """Translate our name to a publisher's key, and give its row; None where it has no place."""
    return _translate(publisher, name, theirs=False)


# A conversion asks for each key several times.
@functools.lru_cache(maxsize=16384)
def _translate(publisher: str, key: str, theirs: bool) -> tuple[str, Row] | None:
    for row, pattern in _patterns(publisher, theirs):
        if found := pattern.fullmatch(key):
            other = (row.ours if theirs else row.theirs).replace("[", "").replace("]", "")
            return other.format(**found.groupdict()), row
    return None


_PLACEHOLDERS = dict(p="weight|bias", s="[0-3]", d="[1-3]", b=r"\d+", n="[12]")


@functools.cache
def _patterns(publisher: str, theirs: bool) -> list[tuple[Row, re.Pattern[str]]]:
    """Each row of a table with the pattern of its key on one side."""
    rows = []
    for row in TABLES[publisher]:
        pattern = re.escape(row.theirs if theirs else row.ours)
        pattern = re.sub(r"\\\[(.*?)\\\]", r"(?:\1)?", pattern)
        for name, values in _PLACEHOLDERS.items():
            pattern = pattern.replace(rf"\{{{name}\}}", f"(?P<{name}>{values})")
        rows.append((row, re.compile(pattern)))
    return rows
