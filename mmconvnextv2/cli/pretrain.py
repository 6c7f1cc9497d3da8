"""Pre-train on a folder of images without labels (FCMAE)."""

from __future__ import annotations

from collections.abc import Sequence

from mmconvnextv2.cli.arguments import (
    ARCHS,
    Parser,
    add_running_arguments,
    call_arguments,
    command_parser,
)
from mmconvnextv2.cli.summary import print_next, print_run


def parser() -> Parser:
    """The command's parser; its arguments are those of `mmconvnextv2.pretrain`."""
    made = command_parser("pretrain", "--data DIR [--out RUN] [options]", __doc__)
    add = made.add_argument
    add("--data", required=True, metavar="DIR", help="images, nested or flat, or tar shards")
    add("--out", metavar="RUN", help="folder for the results (work_dirs/pretrain)")
    add("--arch", choices=ARCHS, metavar="NAME", help=f"{' '.join(ARCHS)} (tiny)")
    add(
        "--init",
        metavar="WEIGHTS",
        help="go on from a checkpoint: run folder, file, URL or hf://org/name (random weights)",
    )
    add("--epochs", type=int, metavar="N", help="passes over the images (by number of images)")
    add("--batch-size", type=int, metavar="N", help="images of one forward pass (64)")
    add(
        "--effective-batch",
        type=int,
        metavar="N",
        help="images behind one optimizer step, a multiple of the batch size (the batch size)",
    )
    add(
        "--base-lr", type=float, metavar="RATE", help="learning rate for 256 images (by batch size)"
    )
    add("--image-size", type=int, metavar="PIXELS", help="side of the crops, n x 32 (224)")
    add("--mask-ratio", type=float, metavar="SHARE", help="share of cells to remove (0.6)")
    add_running_arguments(made)
    return made


def run(argv: Sequence[str]) -> int:
    """Pre-train."""
    given = call_arguments(parser().parse_args(argv), there=["data"])
    from mmconvnextv2 import pretrain

    result = pretrain(**given)
    print_run(result)
    grid = result.out.parent / "grid.png"
    print_next(
        *("reconstruct", "--images", given["data"], "--checkpoint", result.out, "--out", grid)
    )
    return 0
