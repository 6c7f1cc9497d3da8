"""Measure how selective the channels of an encoder are for classes (paper, appendix C, figure 7).

For each channel of each block's output: 0 where it is equally active for all classes, 1 where it
is active for one class alone. Writes a table with a row a channel, a JSON file with a summary of
each block, and a plot of the distributions. IMAGES has a sub-folder of images for each class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from mmconvnextv2.analysis.block_features import BlockName, block_names
from mmconvnextv2.analysis.class_selectivity import ClassActivity, class_selectivity
from mmconvnextv2.analysis.command_line import (
    describe_models,
    load_encoders,
    make_parser,
    read_images,
    run_tool,
    write_tables,
)
from mmconvnextv2.analysis.encoders import Encoder
from mmconvnextv2.analysis.image_batches import choose_labelled_images
from mmconvnextv2.visualization.class_selectivity import plot_class_selectivity


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(
        __doc__, "folder with a sub-folder of images for each class", "work_dirs/class_selectivity"
    )
    parser.add_argument(
        "--per-class", type=int, default=50, help="images of each class, evenly spaced (50)"
    )
    return parser.parse_args(argv)


@torch.inference_mode()
def measure(encoder: Encoder, args: argparse.Namespace) -> tuple[ClassActivity, int]:
    """Activities by class, and the number of classes."""
    paths, labels, classes = choose_labelled_images(args.images, args.per_class, encoder)
    activity = ClassActivity(len(classes))
    for positions, x_NCHW in read_images(encoder, paths, args):
        activity.add(encoder.backbone, x_NCHW, torch.tensor([labels[i] for i in positions]))
    return activity, len(classes)


def summarize(name: BlockName, activity_KC: Tensor, selectivity_C: Tensor) -> dict:
    """What the JSON file says of a block; channels without any activity are only counted."""
    active_C = activity_KC.amax(dim=0) > 0
    values = selectivity_C[active_C]
    return dict(
        stage=name.stage,
        block=name.block,
        channels=len(active_C),
        inactive=int((~active_C).sum()),
        mean=values.mean().item() if len(values) else None,
        median=values.quantile(0.5).item() if len(values) else None,
        selectivities=values.tolist(),
    )


def run(args: argparse.Namespace) -> list[str]:
    """Do what the command line asks for; returns lines for people."""
    rows, models, lines = [], [], []
    for encoder, model in zip(load_encoders(args), describe_models(args), strict=True):
        activity, num_classes = measure(encoder, args)
        blocks = []
        for name, activity_KC in zip(
            block_names(encoder.backbone), activity.means_KC(), strict=True
        ):
            selectivity_C = class_selectivity(activity_KC)
            blocks.append(summarize(name, activity_KC, selectivity_C))
            rows += [
                dict(
                    model=encoder.name,
                    stage=name.stage,
                    block=name.block,
                    channel=channel,
                    selectivity=selectivity,
                    mean_activity=mean,
                )
                for channel, (selectivity, mean) in enumerate(
                    zip(selectivity_C.tolist(), activity_KC.mean(dim=0).tolist(), strict=True)
                )
            ]
        images = int(activity.counts_K.sum())
        models.append(dict(**model, images=images, classes=num_classes, blocks=blocks))
        last = blocks[-1]
        lines.append(
            f"{encoder.name}: {images:,} images of {num_classes} classes; mean selectivity of the "
            f"last block {last['mean'] or 0:.3f}, {last['inactive']} of its {last['channels']} "
            f"channels inactive"
        )
    stem = args.out_dir / "class_selectivity"
    content = dict(folder=str(args.images), image_size=args.image_size, models=models)
    files = write_tables(stem, content, rows)
    distributions = {
        model["name"]: {
            BlockName(block["stage"], block["block"]): block["selectivities"]
            for block in model["blocks"]
        }
        for model in models
    }
    files.append(plot_class_selectivity(distributions, f"{stem}.png"))
    return [*lines, *map(str, files)]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line for what the user can put right."""
    return run_tool("class_selectivity.py", run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
