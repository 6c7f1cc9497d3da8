"""Draws how selective the channels of each block are, one small panel a block."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmconvnextv2.analysis.block_features import BlockName
from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.colours import line_colours

_COLUMNS = 6
_LEAST_WIDTH = 0.02

Distribution = Mapping[BlockName, Sequence[float]]
"""Selectivities of the channels of each block."""


def density(values: Sequence[float], at: NDArray[np.floating]) -> NDArray[np.floating]:
    """Estimate the density of values in [0, 1] with a Gaussian kernel, at some points.

    The kernel's width is Silverman's rule of thumb, at least 0.02. What would fall beyond 0 and 1
    is mirrored back, so that all of it lies between them.

    Args:
        values: at least one.
        at: points in [0, 1].
    """
    data = np.asarray(values, dtype=np.float64)
    quartiles = np.quantile(data, (0.25, 0.75))
    spread = min(data.std(), (quartiles[1] - quartiles[0]) / 1.349)
    width = max(_LEAST_WIDTH, 0.9 * spread * len(data) ** -0.2)
    mirrored = np.concatenate([data, -data, 2 - data])
    distances = (at[:, None] - mirrored) / width
    heights = np.exp(-0.5 * distances**2).sum(axis=1)
    return heights / (len(data) * width * math.sqrt(2 * math.pi))


def plot_class_selectivity(
    distributions: Mapping[str, Distribution], path: str | os.PathLike[str]
) -> Path:
    """Draw the density of the channels' selectivity, a panel a block, as figure 7 does.

    Args:
        distributions: by the name of an encoder; a block without any channel is left out.
        path: the PNG to write, atomically.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is nothing to draw.
    """
    blocks = sorted({name for blocks in distributions.values() for name in blocks})
    if not blocks:
        raise ValueError("there is no block to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(_COLUMNS, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = Figure(
        figsize=(max(1.75 * columns, 5.0), 1.45 * rows + 0.9), dpi=144, layout="constrained"
    )
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    colours = line_colours(len(distributions))
    for axes, block in zip(panels, blocks, strict=False):
        for colour, distribution in zip(colours, distributions.values(), strict=True):
            if len(distribution.get(block, ())) > 0:
                _draw_density(axes, distribution[block], colour)
        axes.set_title(f"stage {block.stage}, block {block.block}", fontsize=8, loc="left")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, None)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right", "left"]].set_visible(False)
    for axes in panels[len(blocks) :]:
        axes.set_visible(False)
    figure.suptitle(
        "Density of the channels' class selectivity in each block\n"
        "0: equally active for all classes, 1: for one class alone; dot: mean",
        fontsize=9,
    )
    handles = [
        Line2D([], [], color=colour, label=name)
        for name, colour in zip(distributions, colours, strict=True)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small"
    )
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return write_atomically(path, buffer.getvalue())


def _draw_density(axes: Any, values: Sequence[float], colour: str) -> None:
    grid = np.linspace(0, 1, 201)
    heights = density(values, grid)
    axes.fill_between(grid, heights, color=colour, alpha=0.18, linewidth=0)
    axes.plot(grid, heights, color=colour, linewidth=1.3)
    axes.plot(np.mean(values), 0, "o", color=colour, markersize=4, clip_on=False, zorder=3)
