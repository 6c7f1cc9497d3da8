"""Draws what the channels of a block do on an image: a square a channel (paper, figure 3).

Shape suffixes: C channels, H and W positions.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmconvnextv2.files import write_atomically

SHOWN = 64
"""Channels of a panel."""

_SIDE = 26
_FRAME = 2
_PLAIN, _DEAD, _SATURATED = (255, 255, 255), (214, 39, 40), (255, 150, 20)


@dataclass(frozen=True)
class ChannelMaps:
    """What some channels of a block do on one image, and of which kind they are on all images.

    Attributes:
        maps_CHW: their features.
        dead_C: bool, see `mmconvnextv2.analysis.channel_activity`.
        saturated_C: bool.
    """

    maps_CHW: NDArray[np.floating]
    dead_C: NDArray[np.bool_]
    saturated_C: NDArray[np.bool_]


def shown_channels(count: int) -> NDArray[np.int64]:
    """Evenly spaced channels for a panel: 64 of them, or all where there are fewer."""
    return np.linspace(0, count - 1, min(count, SHOWN)).round().astype(np.int64)


def draw_channels(channels: ChannelMaps) -> Image.Image:
    """Lay channels out as squares on one common scale, framed where they are dead or saturated.

    The scale goes from 0 or below, darkest, to the 99th percentile of all squares together,
    brightest: so a channel that does nothing stays dark, and one that is high everywhere is bright
    and flat.
    """
    from matplotlib import colormaps

    maps_CHW = channels.maps_CHW.astype(np.float64)
    top = max(float(np.percentile(maps_CHW, 99)), 1e-12)
    colours_CHW3 = colormaps["viridis"]((maps_CHW / top).clip(0, 1))[..., :3]
    columns = math.ceil(math.sqrt(len(maps_CHW)))
    step = _SIDE + 2 * _FRAME + 1
    rows = -(-len(maps_CHW) // columns)
    panel = Image.new("RGB", (columns * step, rows * step), _PLAIN)
    for i, colours_HW3 in enumerate(colours_CHW3):
        square = Image.fromarray((255 * colours_HW3).round().astype(np.uint8))
        square = square.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        frame = _DEAD if channels.dead_C[i] else _SATURATED if channels.saturated_C[i] else _PLAIN
        tile = Image.new("RGB", (_SIDE + 2 * _FRAME, _SIDE + 2 * _FRAME), frame)
        tile.paste(square, (_FRAME, _FRAME))
        row, column = divmod(i, columns)
        panel.paste(tile, (column * step, row * step))
    return panel


def plot_activation_maps(
    images: Sequence[Image.Image],
    panels: Mapping[str, Sequence[ChannelMaps]],
    path: str | os.PathLike[str],
    title: str,
) -> Path:
    """Draw a row an image: the image itself, and a panel of channels for each encoder.

    Args:
        images: RGB.
        panels: by the name of an encoder, its channels on each image.
        path: the PNG to write, atomically.
        title: text above all of it.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no image or encoder, or not a panel for each image.
    """
    if not images or not panels or any(len(rows) != len(images) for rows in panels.values()):
        raise ValueError(
            f"a panel is needed for each image, and at least one: got {len(images)} images and "
            f"{ {name: len(rows) for name, rows in panels.items()} } panels"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 + len(panels)
    figure = Figure(figsize=(2.6 * columns, 2.6 * len(images) + 0.7), dpi=144, layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        pictures = [image, *(draw_channels(rows[row]) for rows in panels.values())]
        for axes, picture, name in zip(grid[row], pictures, ("image", *panels), strict=True):
            axes.imshow(np.asarray(picture), interpolation="lanczos" if picture is image else None)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("red frame: dead channel; orange frame: saturated channel", fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return write_atomically(path, buffer.getvalue())
