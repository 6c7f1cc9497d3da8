"""Draw what a pre-trained model puts in the place of removed cells."""

from __future__ import annotations

from collections.abc import Sequence

from mmconvnextv2.cli.arguments import Parser, call_arguments, command_parser
from mmconvnextv2.cli.summary import folder_of, print_next, print_summary

OUT = "reconstruction.png"


def parser() -> Parser:
    """The command's parser; its arguments are those of `mmconvnextv2.reconstruct`."""
    usage = "--images DIR --checkpoint RUN [options]"
    made = command_parser("reconstruct", usage, __doc__)
    add = made.add_argument
    add("--images", required=True, metavar="DIR", help="folder of images, or one image")
    add(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="folder of a pre-training run, or a checkpoint of one",
    )
    add("--out", default=OUT, metavar="FILE", help=f"picture to write, PNG ({OUT})")
    add("--config", metavar="FILE", help="config of the run (found from the checkpoint)")
    add("--num-images", type=int, metavar="N", help="most images to show (8)")
    add("--seed", type=int, metavar="N", help="of the masks (0)")
    add("--mask-ratio", type=float, metavar="SHARE", help="share to remove (the run's)")
    add(
        "--image-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side, or height and width, multiples of 32 (the run's)",
    )
    add("--device", help="where to run, such as cuda (cpu)")
    return made


def run(argv: Sequence[str]) -> int:
    """Draw."""
    made = parser()
    given = call_arguments(made.parse_args(argv), there=["images", "checkpoint", "config"])
    sides = given.get("image_size", [])
    if len(sides) > 2:
        made.error(f"--image-size takes one or two numbers, got {len(sides)}")
    if sides:
        given["image_size"] = (sides[0], sides[-1])
    from mmconvnextv2 import reconstruct

    grid = reconstruct(**given)
    rows = [("picture", given["out"]), ("pixels", f"{grid.width}x{grid.height}")]
    print_summary("reconstruction drawn: original, masked, prediction, composite", rows)
    detector = folder_of(given["checkpoint"]).parent / "detection"
    print_next(
        *("finetune", "--task", "detection", "--data", "LABELLED_DIR"),
        *("--init", given["checkpoint"], "--out", detector),
    )
    return 0
