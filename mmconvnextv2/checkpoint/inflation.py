"""Weights of a network for images of another number of channels.

Shape suffixes: O outputs, I image channels, H and W positions of the stem's kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mmconvnextv2.nn.cells import CELL_SIZE

INFLATION_MODES = ("mean", "sum")
"""How a stem gets more channels than it has; `inflate_stem` says what each means."""

STEM = "downsample_layers.0.0.weight"
_STEM = re.compile(rf"(backbone\.)?{re.escape(STEM)}")
_PREDICTION = re.compile(r"neck\.prediction\.(weight|bias)")


def inflate_stem(weight_OIHW: Tensor, in_channels: int, mode: str = "mean") -> Tensor:
    """Give the first convolution another number of image channels.

    To fewer channels, both modes share the sum of the old kernels out among the new ones. So a
    one-channel image meets the same response as that image repeated in all old channels.

    To more channels, "mean" keeps the old kernels, which leaves the response to the first channels
    as it was, and gives each further channel the mean of them: for channels that are new to the
    network beside others that it knows. "sum" repeats the old kernels in turn, each divided by how
    often it occurs, so that the sum over channels stays: for channels that are all alike.

    Args:
        weight_OIHW: ``(O, I, H, W)``.
        in_channels: channels of the images from now on.
        mode: one of `INFLATION_MODES`.

    Returns:
        ``(O, in_channels, H, W)``; the weight itself where it has that many channels.

    Raises:
        ValueError: the mode is unknown or `in_channels` smaller than 1.
    """
    _check(in_channels, mode)
    old = weight_OIHW.shape[1]
    if in_channels == old:
        return weight_OIHW
    if in_channels < old:
        total = weight_OIHW.sum(dim=1, keepdim=True)
        return (total / in_channels).repeat(1, in_channels, 1, 1)
    if mode == "mean":
        mean = weight_OIHW.mean(dim=1, keepdim=True)
        return torch.cat([weight_OIHW, mean.repeat(1, in_channels - old, 1, 1)], dim=1)
    source = torch.arange(in_channels, device=weight_OIHW.device) % old
    copies = torch.bincount(source, minlength=old)[source]
    return weight_OIHW[:, source] / copies.to(weight_OIHW.dtype).view(1, -1, 1, 1)


def inflate_prediction(tensor: Tensor, in_channels: int, mode: str = "mean") -> Tensor:
    """Let FCMAE's decoder predict another number of image channels.

    Fewer channels are each predicted as the mean of the old ones. Of more channels, "mean" predicts
    the further ones as that mean, and "sum" repeats the old ones in turn.

    Args:
        tensor: weight or bias of the prediction, its rows in the order of
            `mmconvnextv2.nn.patchify`: row, column, channel.
        in_channels: channels of the images from now on.
        mode: one of `INFLATION_MODES`.

    Returns:
        The same with ``32 * 32 * in_channels`` rows.

    Raises:
        ValueError: the mode is unknown, `in_channels` smaller than 1, or the rows are not those of
            whole patches.
    """
    _check(in_channels, mode)
    old, rest = divmod(len(tensor), CELL_SIZE**2)
    if rest or not old:
        raise ValueError(
            f"a prediction has {CELL_SIZE**2} rows for each channel, this tensor has {len(tensor)}"
        )
    if in_channels == old:
        return tensor
    rows = tensor.unflatten(0, (CELL_SIZE**2, old))
    mean = rows.mean(dim=1, keepdim=True)
    if in_channels < old:
        chosen = [mean] * in_channels
    else:
        further = range(old, in_channels)
        chosen = [rows, *(mean if mode == "mean" else rows[:, [i % old]] for i in further)]
    return torch.cat(chosen, dim=1).flatten(0, 1)


def inflate_channels(
    state_dict: Mapping[str, Tensor], in_channels: int, mode: str = "mean"
) -> dict[str, Tensor]:
    """Give a state_dict, by our names, another number of image channels.

    Args:
        state_dict: of a backbone, or of a model with the parts ``backbone`` and perhaps ``neck``.
        in_channels: channels of the images from now on.
        mode: one of `INFLATION_MODES`.

    Returns:
        The stem and the decoder's prediction in their new shapes, all else as it is.

    Raises:
        ValueError: as for `inflate_stem` and `inflate_prediction`.
    """
    _check(in_channels, mode)
    inflated = dict(state_dict)
    for key, tensor in state_dict.items():
        if _STEM.fullmatch(key):
            inflated[key] = inflate_stem(tensor, in_channels, mode)
        elif _PREDICTION.fullmatch(key):
            inflated[key] = inflate_prediction(tensor, in_channels, mode)
    return inflated


def _check(in_channels: int, mode: str) -> None:
    if mode not in INFLATION_MODES:
        raise ValueError(f"inflate_stem must be one of {', '.join(INFLATION_MODES)}, got {mode!r}")
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
