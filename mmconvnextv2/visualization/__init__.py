"""Pictures of a run: reconstruction grid, loss curve and a self-contained HTML report."""

from mmconvnextv2.visualization.curves import plot_loss_curve, read_scalars
from mmconvnextv2.visualization.prediction import draw_reconstructions
from mmconvnextv2.visualization.reconstruction import (
    reconstruction_grid,
    reconstruction_panels,
    unnormalize,
)
from mmconvnextv2.visualization.report import Figure, Section, write_report

__all__ = [
    "Figure",
    "Section",
    "draw_reconstructions",
    "plot_loss_curve",
    "read_scalars",
    "reconstruction_grid",
    "reconstruction_panels",
    "unnormalize",
    "write_report",
]
