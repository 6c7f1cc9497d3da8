"""Feature cosine distance by layer, of the encoders that the cells of a study have left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mmconvnextv2.analysis.encoders import load_encoder
from mmconvnextv2.analysis.feature_statistics import block_diversity
from mmconvnextv2.analysis.image_batches import ImageBatches, choose_images
from mmconvnextv2.apis.study import WEIGHTS
from mmconvnextv2.apis.study_definition import Curves

Distances = dict[str, dict[int, list[float]]]
"""Mean cosine distance of the channels of each block, by label and seed."""


def measure_curves(curves: Curves, seeds: Sequence[int], cells: Path) -> Distances:
    """Measure `block_diversity` on the images that the study names.

    Args:
        curves: cells, and images to look at.
        seeds: seeds whose cells are finished.
        cells: folder of the cells.

    Raises:
        FileNotFoundError: a cell, its weights or the images are not there.
    """
    return {
        label: {seed: _measure(curves, cells / cell / f"seed{seed}") for seed in seeds}
        for label, cell in curves.cells.items()
    }


@torch.no_grad()
def _measure(curves: Curves, folder: Path) -> list[float]:
    configs = sorted(folder.glob("*.py"))  # the Runner leaves one
    if len(configs) != 1:
        raise FileNotFoundError(f"{folder} has {len(configs)} configs, not one: it is no cell")
    encoder = load_encoder(folder.parent.name, configs[0], folder / WEIGHTS)
    paths = choose_images(curves.images, curves.count, encoder)
    batches = ImageBatches(encoder, paths, curves.image_size)
    distance_NB = torch.cat([block_diversity(encoder.backbone, x_NCHW) for _, x_NCHW in batches])
    return distance_NB.mean(dim=0).tolist()
