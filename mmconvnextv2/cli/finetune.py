"""Fine-tune for classification, detection or segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmconvnextv2.cli.arguments import (
    ARCHS,
    Parser,
    add_running_arguments,
    call_arguments,
    command_parser,
)
from mmconvnextv2.cli.summary import print_next, print_run

HELD_OUT = {"classification": "val", "detection": "val", "segmentation": "images/validation"}
"""Where a labelled set has its held-out images, by task."""

LAYOUTS = """the labelled set in --data:
  classification  train/CLASS/*, val/CLASS/*
  detection       train/, val/, annotations/instances_{train,val}.json (COCO)
  segmentation    images/{training,validation}/, annotations/{...}/*.png"""


def parser() -> Parser:
    """The command's parser; its arguments are those of `mmconvnextv2.finetune`."""
    usage = "--task TASK --data DIR --out RUN [options]"
    made = command_parser("finetune", usage, __doc__, LAYOUTS)
    add = made.add_argument
    add("--task", required=True, choices=tuple(HELD_OUT), metavar="TASK", help=", ".join(HELD_OUT))
    add("--data", required=True, metavar="DIR", help="labelled images, laid out as below")
    add("--out", required=True, metavar="RUN", help="folder for the results")
    add(
        "--init",
        metavar="WEIGHTS",
        help="encoder: run folder, file, URL or hf://org/name (random weights)",
    )
    add("--arch", choices=ARCHS, metavar="NAME", help=f"{' '.join(ARCHS)} (that of the weights)")
    add("--epochs", type=int, metavar="N", help="passes over the images (by number of images)")
    add("--batch-size", type=int, metavar="N", help="images of one forward pass (16, detection 4)")
    add(
        "--effective-batch",
        type=int,
        metavar="N",
        help="images behind one optimizer step, a multiple of the batch size (the batch size)",
    )
    add("--lr", type=float, metavar="RATE", help="learning rate of a step (by task and batch)")
    add(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="longest side in training (that of the images)",
    )
    add_running_arguments(made)
    return made


def run(argv: Sequence[str]) -> int:
    """Fine-tune."""
    given = call_arguments(parser().parse_args(argv), there=["data"])
    from mmconvnextv2 import finetune

    result = finetune(**given)
    print_run(result)
    images = Path(given["data"]) / HELD_OUT[given["task"]]
    pictures = result.out.parent / "found"
    print_next(*("predict", "--images", images, "--checkpoint", result.out, "--out", pictures))
    return 0
