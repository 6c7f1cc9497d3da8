"""Build the sample data set: images to pre-train on, ImageNet folders, COCO and ADE20K.

Example:
    python tools/dataset_converters/make_sample_set.py data/sample_set
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from mmconvnextv2.datasets.sample_set import (
    TASKS,
    ClassificationSpec,
    DetectionSpec,
    PretrainSpec,
    SegmentationSpec,
    build_sample_set,
)
from mmconvnextv2.datasets.sample_set.specs import SplitSpec

SPECS = {
    "pretrain": PretrainSpec(),
    "classification": ClassificationSpec(),
    "detection": DetectionSpec(),
    "segmentation": SegmentationSpec(),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The parsed arguments.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out_dir", help="folder of the set: new, empty, or a sample set")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="parts to build")
    parser.add_argument("--overwrite", action="store_true", help="replace another sample set")
    for task, spec in SPECS.items():
        group = parser.add_argument_group(task)
        numbers = {"size": (spec.image_size, "side of an image, in pixels; digits scale along")}
        numbers["train"] = (spec.num_train, "training images")
        if isinstance(spec, SplitSpec):
            numbers["val"] = (spec.num_val, "validation images")
        for name, (default, text) in numbers.items():
            group.add_argument(
                f"--{task}-{name}", type=int, metavar="N", default=default, help=text
            )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Build the set and print its folder.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 after an error that was printed in one line.
    """
    args = vars(parse_args(argv))
    try:
        specs = {}
        for task, spec in SPECS.items():
            counts = dict(num_train=args[f"{task}_train"])
            if isinstance(spec, SplitSpec):
                counts["num_val"] = args[f"{task}_val"]
            specs[task] = replace(spec.scaled_to(args[f"{task}_size"]), **counts)
        root = build_sample_set(
            args["out_dir"],
            seed=args["seed"],
            tasks=args["tasks"],
            overwrite=args["overwrite"],
            **specs,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
