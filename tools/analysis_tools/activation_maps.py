"""Show what the channels of a block do, and count dead and saturated ones (paper, figure 3).

Looks inside the blocks, after GELU and before GRN. Counts every block over all images, into a
table and a JSON file, and draws 64 channels of one block on some images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmconvnextv2.analysis.block_features import BlockName, block_names, visit_blocks
from mmconvnextv2.analysis.channel_activity import ChannelActivity, ChannelKinds
from mmconvnextv2.analysis.command_line import (
    describe_models,
    load_encoders,
    make_parser,
    read_images,
    run_tool,
    write_tables,
)
from mmconvnextv2.analysis.encoders import Encoder
from mmconvnextv2.analysis.image_batches import choose_images
from mmconvnextv2.visualization.activation_maps import (
    ChannelMaps,
    plot_activation_maps,
    shown_channels,
)


class Activity(NamedTuple):
    """What was found in an encoder.

    Attributes:
        images: number of images.
        kinds: dead and saturated channels of each block.
        pictured: features of one block on the first images, ``(C, H, W)`` each.
        pictures: these images, as the encoder gets them, ``(C, H, W)`` each.
    """

    images: int
    kinds: list[ChannelKinds]
    pictured: list[Tensor]
    pictures: list[Tensor]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, "folder of images", "work_dirs/activation_maps")
    parser.add_argument(
        "--num-images", type=int, default=100, help="images to count over, evenly spaced (100)"
    )
    parser.add_argument("--num-pictures", type=int, default=3, help="images to draw (3)")
    parser.add_argument(
        "--block",
        type=int,
        nargs=2,
        metavar=("STAGE", "BLOCK"),
        help="block to draw, counted from 1 (the last of the last stage but one)",
    )
    return parser.parse_args(argv)


def choose_block(blocks: list[BlockName], wanted: Sequence[int] | None) -> BlockName:
    """Find the block to draw.

    Raises:
        ValueError: there is no such block.
    """
    if wanted is None:
        stage = max(1, blocks[-1].stage - 1)
        return [name for name in blocks if name.stage == stage][-1]
    name = BlockName(*wanted)
    if name not in blocks:
        depths = [sum(b.stage == s for b in blocks) for s in range(1, blocks[-1].stage + 1)]
        raise ValueError(f"there is no block {name.block} in stage {name.stage}: depths {depths}")
    return name


@torch.inference_mode()
def measure(encoder: Encoder, shown: BlockName, args: argparse.Namespace) -> Activity:
    """Encode the images, sort the channels of each block, and keep what is to be drawn."""
    names = block_names(encoder.backbone)
    activities = [ChannelActivity() for _ in names]
    pictured: list[Tensor] = []
    pictures: list[Tensor] = []

    def see(i: int, features_NCHW: Tensor) -> None:
        activities[i].add(features_NCHW)
        if names[i] == shown and len(pictured) < args.num_pictures:
            pictured.extend(features_NCHW[: args.num_pictures - len(pictured)].float().cpu())

    paths = choose_images(args.images, args.num_images, encoder)
    images = 0
    for _, x_NCHW in read_images(encoder, paths, args):
        visit_blocks(encoder.backbone, x_NCHW, activation=see)
        pictures.extend(x_NCHW[: args.num_pictures - len(pictures)].cpu())
        images += len(x_NCHW)
    return Activity(images, [activity.kinds() for activity in activities], pictured, pictures)


def to_picture(x_CHW: Tensor) -> Image.Image:
    """Make a normalised image visible: each of its first three channels from black to white."""
    x_CHW = x_CHW[:3] if len(x_CHW) >= 3 else x_CHW[:1].expand(3, -1, -1)
    low, high = (x_CHW.flatten(1).quantile(q, dim=1)[:, None, None] for q in (0.01, 0.99))
    x_CHW = ((x_CHW - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return Image.fromarray((255 * x_CHW.permute(1, 2, 0)).round().byte().numpy())


def pick_maps(features_CHW: Tensor, kinds: ChannelKinds) -> ChannelMaps:
    """Take the channels of a panel."""
    chosen = shown_channels(len(features_CHW))
    features, dead, saturated = (np.asarray(t.cpu()) for t in (features_CHW, *kinds))
    return ChannelMaps(features[chosen], dead[chosen], saturated[chosen])


def table_rows(name: str, blocks: list[BlockName], kinds: list[ChannelKinds]) -> list[dict]:
    """One row a block."""
    return [
        dict(
            model=name,
            stage=stage,
            block=block,
            channels=len(of_block.dead_C),
            dead=int(of_block.dead_C.sum()),
            saturated=int(of_block.saturated_C.sum()),
        )
        for (stage, block), of_block in zip(blocks, kinds, strict=True)
    ]


def run(args: argparse.Namespace) -> list[str]:
    """Do what the command line asks for; returns lines for people."""
    if args.num_pictures < 1:
        raise ValueError(f"--num-pictures must be at least 1, got {args.num_pictures}")
    rows, models, lines, panels, pictures, drawn = [], [], [], {}, [], []
    for encoder, model in zip(load_encoders(args), describe_models(args), strict=True):
        blocks = block_names(encoder.backbone)
        shown = choose_block(blocks, args.block)
        activity = measure(encoder, shown, args)
        own = table_rows(encoder.name, blocks, activity.kinds)
        rows += own
        models.append(dict(**model, images=activity.images, drawn=list(shown), blocks=own))
        of_shown = activity.kinds[blocks.index(shown)]
        panels[encoder.name] = [pick_maps(maps, of_shown) for maps in activity.pictured]
        pictures = pictures or [to_picture(x_CHW) for x_CHW in activity.pictures]
        drawn.append(f"{encoder.name}: stage {shown.stage}, block {shown.block}")
        counts = ", ".join(
            f"{sum(row[kind] for row in own):,} {kind}" for kind in ("dead", "saturated")
        )
        total = sum(row["channels"] for row in own)
        lines.append(f"{encoder.name}: of {total:,} channels in {len(own)} blocks {counts}")
    stem = args.out_dir / "activation_maps"
    content = dict(folder=str(args.images), image_size=args.image_size, models=models)
    files = write_tables(stem, content, rows)
    title = f"Channels after GELU; {'; '.join(drawn)}"
    files.append(plot_activation_maps(pictures, panels, f"{stem}.png", title))
    return [*lines, *map(str, files)]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line for what the user can put right."""
    return run_tool("activation_maps.py", run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
