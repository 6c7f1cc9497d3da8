"""Classify, detect or segment images, and draw what is found."""

from __future__ import annotations

from collections.abc import Sequence

from mmconvnextv2.cli.arguments import Parser, call_arguments, command_parser
from mmconvnextv2.cli.summary import folder_of, print_next, print_summary


def parser() -> Parser:
    """The command's parser; its arguments are those of `mmconvnextv2.predict`."""
    made = command_parser("predict", "--images DIR --checkpoint RUN --out DIR [options]", __doc__)
    add = made.add_argument
    add("--images", required=True, metavar="DIR", help="folder of images, or one image")
    add(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="folder of a fine-tuning run, or a checkpoint of one",
    )
    add("--out", required=True, metavar="DIR", help="folder for pictures and predictions.json")
    add("--config", metavar="FILE", help="config of the run (found from the checkpoint)")
    add("--num-images", type=int, metavar="N", help="most images to take (all)")
    add("--score", type=float, help="draw objects with at least this score (0.5)")
    add("--device", help="where to run, such as cpu or cuda (auto)")
    return made


def run(argv: Sequence[str]) -> int:
    """Predict."""
    given = call_arguments(parser().parse_args(argv), there=["images", "checkpoint", "config"])
    from mmconvnextv2 import predict

    result = predict(**given)
    rows = [
        ("images", f"{len(result.pictures):,}"),
        ("pictures", given["out"]),
        ("predictions", result.predictions),
    ]
    print_summary(f"{result.task}: predicted", rows)
    run_folder = folder_of(given["checkpoint"])
    if (run_folder / "config.py").is_file():
        print_next("report", run_folder)
    return 0
