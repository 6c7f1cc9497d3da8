"""Convert the state_dict of a ConvNeXt V2 between publishers, with nothing lost unsaid."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmconvnextv2.checkpoint.key_maps import (
    TABLES,
    TASK_PARTS,
    TIMM_CONV_SIZES,
    Row,
    our_name,
    their_name,
    to_our_shape,
    to_their_shape,
)
from mmconvnextv2.checkpoint.loading import StateDictMismatch, check_fits
from mmconvnextv2.nn import ARCHITECTURES, ConvNeXtV2, FCMAEDecoder
from mmconvnextv2.nn.cells import CELL_SIZE

PUBLISHERS = tuple(TABLES)
"""Names of the formats: official, official-sparse, timm, transformers, mmpretrain, mmconvnextv2."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion gave.

    Attributes:
        state_dict: the tensors under the target's names and in its shapes.
        source: format that they came from.
        target: format that they are in.
        depths: blocks of the four stages.
        channels: channels of the four stages.
        left_out: keys of the source for which the target has no place.
    """

    state_dict: dict[str, Tensor]
    source: str
    target: str
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    left_out: tuple[str, ...]

    @property
    def arch(self) -> str:
        """Name of the size, "custom" for one that is not in the paper."""
        return _arch_name(self.depths, self.channels)

    def summary(self) -> str:
        """Lines for people: what it was, what became of it, what was left out."""
        size = f"{self.arch} (depths {self.depths}, channels {self.channels})"
        text = f"{self.source} -> {self.target}: {len(self.state_dict)} tensors of {size}"
        if self.left_out:
            keys = "".join(f"\n  {key}" for key in self.left_out)
            text += f"\n{len(self.left_out)} left out, {self.target} has no place for them:{keys}"
        return text


def convert_state_dict(
    state_dict: Mapping[str, Tensor], source: str | None = None, target: str = "mmconvnextv2"
) -> Conversion:
    """Give a state_dict the names and shapes of another publisher.

    A classifier, a pre-trained encoder with or without FCMAE's decoder, or a backbone alone. Where
    the target's names have a prefix for the backbone (``backbone.``, ``convnextv2.``,
    ``encoder.``), it is written, whether the source has it or not. Nothing is written in place, and
    a tensor that needs no change is passed on as it is; one that needs another shape is a view of
    the source's memory, except for the kernels of "official-sparse".

    Args:
        state_dict: tensors by name.
        source: one of `PUBLISHERS`; None recognises it from the keys.
        target: one of `PUBLISHERS`.

    Returns:
        The converted tensors, the size that was recognised, and what was left out.

    Raises:
        ValueError: a format is unknown, or the source cannot be recognised.
        StateDictMismatch: the source is not one complete ConvNeXt V2: the message lists every
            tensor that is missing, superfluous or of another shape.
    """
    for name in (source, target):
        if name is not None and name not in TABLES:
            raise ValueError(f"unknown format {name!r}; choose one of {', '.join(PUBLISHERS)}")
    source = _confirm(state_dict, source) if source else recognize_source(state_dict)
    entries, task_parts, unknown = _sort(state_dict, source)
    depths, channels = _infer_arch({entry.name: entry.tensor for entry in entries})
    tensors = _check(entries, unknown, source, depths, channels)

    conv_mlp = _arch_name(depths, channels) in TIMM_CONV_SIZES
    converted, left_out = {}, []
    for entry in entries:
        translated = their_name(target, entry.name)
        if translated is None:
            left_out.append(entry.key)
            continue
        key, row = translated
        converted[key] = to_their_shape(tensors[entry.name], row, conv_mlp)
    if target == "mmconvnextv2":
        converted |= task_parts
    else:
        left_out += task_parts
    return Conversion(converted, source, target, depths, channels, tuple(left_out))


def to_our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state_dict that is another publisher's, and leave any other as it is.

    For loading, which compares the result with a module: a file of another network passes here.

    Raises:
        ValueError: names of several publishers are mixed.
        StateDictMismatch: another publisher's file is not one complete ConvNeXt V2.
    """
    if set(_depthwise_kernels(state_dict)) <= {"mmconvnextv2"}:
        return dict(state_dict)
    return convert_state_dict(state_dict).state_dict


def recognize_source(state_dict: Mapping[str, Tensor]) -> str:
    """Tell from the keys whose state_dict this is.

    The depthwise kernels have a different name at each publisher, except that mmpretrain's names
    are ours: its files are reported as "mmconvnextv2".

    Raises:
        ValueError: no publisher's names are there, or those of several.
    """
    seen = _depthwise_kernels(state_dict)
    if not seen:
        raise ValueError(
            f"this is no ConvNeXt V2 of a known publisher ({', '.join(PUBLISHERS)}): no depthwise "
            f"kernel has a name of theirs; {_first_keys(state_dict)}"
        )
    if len(seen) > 1:
        examples = ", ".join(f"{key} ({publisher})" for publisher, key in seen.items())
        raise ValueError(f"names of several publishers are mixed: {examples}")
    return next(iter(seen))


def _confirm(state_dict: Mapping[str, Tensor], source: str) -> str:
    seen = _depthwise_kernels(state_dict)
    if ("mmconvnextv2" if source == "mmpretrain" else source) not in seen:
        instead = f"its names are those of {', '.join(seen)}; " if seen else ""
        raise ValueError(f"this is no {source} state_dict: {instead}{_first_keys(state_dict)}")
    return source


def _depthwise_kernels(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Publishers whose name of a depthwise kernel occurs, each with the first such key."""
    seen: dict[str, str] = {}
    for key in state_dict:
        for publisher in set(TABLES) - {"mmpretrain"} - set(seen):
            name = (our_name(publisher, key) or ("",))[0]
            if name.startswith("stages.") and name.endswith(".depthwise_conv.weight"):
                seen[publisher] = key
    return seen


def _first_keys(state_dict: Mapping[str, Tensor]) -> str:
    return f"the first keys are {', '.join(list(state_dict)[:5]) or 'none'}"


class _Entry(NamedTuple):
    """A tensor of the source with its key there, its table row, and our name for it."""

    name: str
    key: str
    row: Row
    tensor: Tensor


def _sort(
    state_dict: Mapping[str, Tensor], source: str
) -> tuple[list[_Entry], dict[str, Tensor], dict[str, Tensor]]:
    """Sort tensors into those of the source's table, parts of other tasks, and unknown ones."""
    entries: dict[str, _Entry] = {}
    task_parts: dict[str, Tensor] = {}
    unknown: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        translated = our_name(source, key)
        if translated is None:
            is_task = source == "mmconvnextv2" and TASK_PARTS.match(key)
            (task_parts if is_task else unknown)[key] = tensor
            continue
        name, row = translated
        if name in entries:
            raise ValueError(f"{entries[name].key} and {key} name the same tensor of {source}")
        entries[name] = _Entry(name, key, row, tensor)
    return list(entries.values()), task_parts, unknown


_WITH_ONE_VALUE_A_CHANNEL = re.compile(r"stages\.(\d)\.(\d+)\.(?:norm\.\w+|depthwise_conv\.bias)")


def _infer_arch(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and channels from the blocks that are there; a majority decides about channels."""
    sizes: list[list[int]] = [[], [], [], []]
    depths = [0, 0, 0, 0]
    for name, tensor in tensors.items():
        if found := _WITH_ONE_VALUE_A_CHANNEL.fullmatch(name):
            stage, block = int(found[1]), int(found[2])
            depths[stage] = max(depths[stage], block + 1)
            sizes[stage].append(tensor.numel())
    if not all(depths):
        raise StateDictMismatch(f"a ConvNeXt V2 has blocks in four stages; found {depths}")
    if sum(depths) > len(tensors):
        raise StateDictMismatch(
            f"blocks are missing: their numbers begin at 0 and make depths of {depths}, in "
            f"{len(tensors)} tensors"
        )
    return tuple(depths), tuple(statistics.mode(stage) for stage in sizes)


def _arch_name(depths: tuple[int, ...], channels: tuple[int, ...]) -> str:
    for name, arch in ARCHITECTURES.items():
        if (arch["depths"], arch["channels"]) == (depths, channels):
            return name
    return "custom"


def _check(
    entries: list[_Entry],
    unknown: Mapping[str, Tensor],
    source: str,
    depths: tuple[int, ...],
    channels: tuple[int, ...],
) -> dict[str, Tensor]:
    """Compare with what such a network has.

    Returns:
        The tensors by our names, in our shapes.

    Raises:
        StateDictMismatch: with the lists, in the source's names and our shapes.
    """
    if not any(".grn." in entry.name for entry in entries):
        raise StateDictMismatch(
            f"no GRN among these {source} names: a ConvNeXt V1 is not what this converts"
        )
    shapes = _expected_shapes({entry.name: entry.tensor for entry in entries}, depths, channels)
    tensors = {
        entry.name: to_our_shape(entry.tensor, entry.row, shapes.get(entry.name))
        for entry in entries
    }
    keys = {entry.name: entry.key for entry in entries}
    expected = {}
    for name, shape in shapes.items():
        translated = their_name(source, name)
        assert translated is not None  # the shapes are those of tensors the source may have
        expected[keys.get(name, translated[0])] = torch.empty(shape, device="meta")
    check_fits(
        expected,
        {keys[name]: tensor for name, tensor in tensors.items()} | dict(unknown),
        what=f"tensors of a ConvNeXt V2 ({source}, depths {depths}, channels {channels})",
    )
    return tensors


def _expected_shapes(
    tensors: Mapping[str, Tensor], depths: tuple[int, ...], channels: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Shapes by our names: the backbone, and what else of norms, head and decoder is begun."""

    def rows(*names: str) -> int:
        """Length of the first axis of the first of these tensors that is there."""
        shapes = [tensors[name].shape for name in names if name in tensors]
        return shapes[0][0] if shapes and shapes[0] else 1

    stem = tensors.get("downsample_layers.0.0.weight")
    in_channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    shapes = dict(_backbone_shapes(depths, channels, in_channels))
    for i, num_channels in enumerate(channels):
        if any(name.startswith(f"norm{i}.") for name in tensors):
            shapes |= {f"norm{i}.weight": (num_channels,), f"norm{i}.bias": (num_channels,)}
    if any(name.startswith("head.fc.") for name in tensors):
        num_classes = rows("head.fc.bias", "head.fc.weight")
        shapes |= {"head.fc.weight": (num_classes, channels[-1]), "head.fc.bias": (num_classes,)}
    if any(name.startswith("neck.") for name in tensors):
        blocks = [int(name.split(".")[2]) for name in tensors if name.startswith("neck.blocks.")]
        width = rows("neck.projection.bias", "neck.projection.weight")
        outputs = rows("neck.prediction.bias", "neck.prediction.weight")
        image_channels = max(outputs // CELL_SIZE**2, 1)
        depth = 1 + max(blocks, default=-1)
        if depth > len(tensors):
            raise StateDictMismatch(f"the decoder lacks blocks: one has the number {depth - 1}")
        shapes |= _decoder_shapes(channels[-1], image_channels, width, depth)
    return shapes


@functools.lru_cache(maxsize=8)
def _backbone_shapes(
    depths: tuple[int, ...], channels: tuple[int, ...], in_channels: int
) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        net = ConvNeXtV2(dict(depths=depths, channels=channels), in_channels, output_norms=False)
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


@functools.lru_cache(maxsize=8)
def _decoder_shapes(
    in_channels: int, image_channels: int, num_channels: int, depth: int
) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        decoder = FCMAEDecoder(in_channels, image_channels, num_channels, depth)
    return {f"neck.{name}": tuple(value.shape) for name, value in decoder.state_dict().items()}
