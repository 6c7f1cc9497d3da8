"""Compare fine-tuning from scratch, from published and from continued weights; table and picture.

The labelled set is a folder of one of these layouts:
  classification: train/<class>/* and val/<class>/*
  detection:      annotations/instances_{train,val}.json, train/, val/
  segmentation:   images/{training,validation}/, annotations/{training,validation}/*.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmconvnextv2.apis.cfg_options import CfgOptions
from mmconvnextv2.apis.comparison import Comparison, compare_initializations
from mmconvnextv2.apis.comparison_recipes import LAYOUTS, RasterInput
from mmconvnextv2.apis.launch import USER_ERRORS
from mmconvnextv2.checkpoint.inflation import INFLATION_MODES
from mmconvnextv2.datasets.normalization import Normalization


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the labelled set")
    parser.add_argument(
        "--weights",
        nargs="+",
        required=True,
        metavar="NAME=CHECKPOINT",
        help="rows beside 'scratch', e.g. published=hf://timm/convnextv2_atto.fcmae "
        "continued=work_dirs/continue/epoch_100.pth",
    )
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/comparison"))
    parser.add_argument("--task", choices=list(LAYOUTS), help="recognised from the layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps a run (1000)")
    parser.add_argument("--image-size", type=int, help="pixels in training (the recipe's)")
    parser.add_argument("--batch-size", type=int, help="images a step (the recipe's)")
    parser.add_argument("--num-workers", type=int, default=2, help="reading processes (2)")
    parser.add_argument(
        "--normalization",
        type=Path,
        metavar="FILE.json",
        help="read images at their own depth and channels, normalised with what "
        "measure_normalization.py wrote; without it they are read as 8-bit RGB",
    )
    parser.add_argument(
        "--missing",
        choices=["refuse", "ignore"],
        default="refuse",
        help="missing values, with --normalization (refuse)",
    )
    parser.add_argument("--no-data", type=float, help="number that stands for a missing value")
    parser.add_argument(
        "--inflate-stem",
        choices=INFLATION_MODES,
        default="mean",
        help="for weights of another number of channels (mean)",
    )
    parser.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="label 0 of a map is unlabelled, as in ADE20K, and classes start at 1",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=CfgOptions, metavar="KEY=VALUE", help="config settings"
    )
    return parser.parse_args(argv)


def read_weights(pairs: list[str]) -> dict[str, str]:
    """Split NAME=CHECKPOINT.

    Raises:
        ValueError: a pair has no name or no checkpoint, or a name comes twice.
    """
    weights: dict[str, str] = {}
    for pair in pairs:
        name, _, checkpoint = pair.partition("=")
        if not name or not checkpoint or name in weights:
            raise ValueError(f"--weights takes NAME=CHECKPOINT with different names, got {pair!r}")
        weights[name] = checkpoint
    return weights


def compare(args: argparse.Namespace) -> Comparison:
    """Do what the command line asks for."""
    raster = None
    if args.normalization is not None:
        measured = Normalization.load(args.normalization)
        raster = RasterInput(measured, args.missing, args.no_data)
    elif args.no_data is not None or args.missing != "refuse":
        raise ValueError("--missing and --no-data need --normalization: 8-bit RGB misses no value")
    return compare_initializations(
        args.data,
        read_weights(args.weights),
        args.work_dir,
        task=args.task,
        seeds=args.seeds,
        steps=args.steps,
        image_size=args.image_size,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        raster=raster,
        inflate_stem=args.inflate_stem,
        reduce_zero_label=args.reduce_zero_label,
        cfg_options=args.cfg_options,
    )


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line for what the user can put right."""
    try:
        found = compare(parse_args(argv))
    except (ValueError, *USER_ERRORS) as error:
        print(f"compare_initializations.py: {error}", file=sys.stderr)
        return 2
    print(f"\n{found.files[0].read_text(encoding='utf-8')}")
    for path in found.files:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
