"""Measure how alike the channels of an encoder are, block by block (paper, section 3, figure 4).

For each block the mean cosine distance between its channels, averaged over images: 0 where all
channels are copies of each other, about 0.5 where they have nothing in common. Writes a table, a
JSON file, and a plot beside the paper's curves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from mmconvnextv2.analysis.block_features import BlockName, block_names
from mmconvnextv2.analysis.command_line import (
    describe_models,
    load_encoders,
    make_parser,
    read_images,
    run_tool,
    write_tables,
)
from mmconvnextv2.analysis.encoders import Encoder
from mmconvnextv2.analysis.feature_statistics import COLLAPSED_BELOW, block_diversity, mean_by_stage
from mmconvnextv2.analysis.image_batches import choose_images
from mmconvnextv2.analysis.published_curves import layer_positions
from mmconvnextv2.visualization.feature_diversity import plot_feature_diversity


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, "folder of images", "work_dirs/feature_diversity")
    parser.add_argument(
        "--num-images", type=int, default=1000, help="images to measure, evenly spaced (1000)"
    )
    return parser.parse_args(argv)


@torch.inference_mode()
def measure(encoder: Encoder, args: argparse.Namespace) -> Tensor:
    """Distance of each image and block, ``(N, B)``."""
    paths = choose_images(args.images, args.num_images, encoder)
    batches = read_images(encoder, paths, args)
    return torch.cat([block_diversity(encoder.backbone, x_NCHW).cpu() for _, x_NCHW in batches])


def table_rows(name: str, blocks: list[BlockName], diversity_NB: Tensor) -> list[dict]:
    """One row a block."""
    deviations = diversity_NB.std(dim=0, correction=0).tolist()
    return [
        dict(model=name, stage=stage, block=block, position=position, distance=mean, std=std)
        for (stage, block), position, mean, std in zip(
            blocks,
            layer_positions(len(blocks)),
            diversity_NB.mean(dim=0).tolist(),
            deviations,
            strict=True,
        )
    ]


def run(args: argparse.Namespace) -> list[str]:
    """Do what the command line asks for; returns lines for people."""
    rows, models, lines = [], [], []
    for encoder, model in zip(load_encoders(args), describe_models(args), strict=True):
        blocks = block_names(encoder.backbone)
        diversity_NB = measure(encoder, args)
        own = table_rows(encoder.name, blocks, diversity_NB)
        rows += own
        stages = mean_by_stage(diversity_NB, blocks).mean(dim=0).tolist()
        models.append(dict(**model, images=len(diversity_NB), stages=stages, layers=own))
        text = ", ".join(
            f"{value:.3f}{' (collapsed)' if value < COLLAPSED_BELOW else ''}" for value in stages
        )
        mean = sum(row["distance"] for row in own) / len(own)
        lines.append(f"{encoder.name}: mean {mean:.3f}; by stage {text}")
    stem = args.out_dir / "feature_diversity"
    content = dict(folder=str(args.images), image_size=args.image_size, models=models)
    files = write_tables(stem, content, rows)
    curves = {model["name"]: [layer["distance"] for layer in model["layers"]] for model in models}
    files.append(plot_feature_diversity(curves, f"{stem}.png", COLLAPSED_BELOW))
    return [*lines, *map(str, files)]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line for what the user can put right."""
    return run_tool("feature_diversity.py", run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
