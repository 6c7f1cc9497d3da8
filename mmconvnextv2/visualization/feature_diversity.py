"""Draws how alike the channels are, block by block, beside the paper's curves."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmconvnextv2.analysis.published_curves import PAPER_CURVES, layer_positions
from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.colours import line_colours

_PAPER_STYLES = ("-", "--", ":", "-.")
_PAPER_COLOUR = "#a6a6a6"


def plot_feature_diversity(
    curves: Mapping[str, Sequence[float]], path: str | os.PathLike[str], threshold: float
) -> Path:
    """Draw the mean cosine distance of each block over its normalised index, as figure 4 does.

    Args:
        curves: by the name of an encoder, the distance at each of its blocks.
        path: the PNG to write, atomically.
        threshold: distance below which a stage counts as collapsed, drawn as a line.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError("there is no curve to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.4), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    for (name, values), style in zip(PAPER_CURVES.items(), _PAPER_STYLES, strict=True):
        axes.plot(
            layer_positions(len(values)),
            values,
            color=_PAPER_COLOUR,
            linestyle=style,
            linewidth=1.3,
            label=f"paper: {name}",
        )
    for (name, curve), colour in zip(curves.items(), line_colours(len(curves)), strict=True):
        axes.plot(
            layer_positions(len(curve)),
            curve,
            color=colour,
            linewidth=2.0,
            marker="o",
            markersize=4,
            label=name,
            zorder=3,
        )
    axes.axhline(threshold, color="#d9a19a", linewidth=1.0, label=f"collapse: below {threshold:g}")
    axes.set_ylim(0, max(0.55, axes.get_ylim()[1]))
    axes.set_xlabel("normalised layer index: 0 is the first block, 1 the last")
    axes.set_title("Mean cosine distance of the channels inside each block", loc="left")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    # Ours first, though they are drawn last, on top.
    handles, labels = axes.get_legend_handles_labels()
    order = [*range(len(PAPER_CURVES), len(handles)), *range(len(PAPER_CURVES))]
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside right upper",
        frameon=False,
        fontsize="small",
    )
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return write_atomically(path, buffer.getvalue())
