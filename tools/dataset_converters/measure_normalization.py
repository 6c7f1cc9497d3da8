"""Measure mean, deviation and clipping bounds of every channel of a folder of images.

Reads PNG, JPEG, TIFF and .npy at their own depth, 1 to 16 channels. The file it writes holds the
numbers; the lines it prints go into a config, and with it into every checkpoint.

Example:
    python tools/dataset_converters/measure_normalization.py data/images --out normalization.json
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from mmconvnextv2.datasets.image_folder import BadImagesError
from mmconvnextv2.datasets.normalization import Normalization, measure_normalization


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
    parser.add_argument("data", help="folder of images, searched with all folders below it")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="file to write")
    parser.add_argument(
        "--percentiles",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        default=(0.1, 99.9),
        help="clipping bounds; 0 100 clips nothing",
    )
    parser.add_argument(
        "--missing",
        choices=("refuse", "ignore"),
        default="refuse",
        help="what to do with NaN and no-data values",
    )
    parser.add_argument(
        "--no-data", type=float, metavar="VALUE", help="number that stands for a missing value"
    )
    parser.add_argument(
        "--constant",
        choices=("refuse", "keep"),
        default="refuse",
        help="what to do with a channel that holds one value; keep takes 1 for its deviation",
    )
    parser.add_argument("--threads", type=int, default=4, help="files to read at a time")
    return parser.parse_args(argv)


def show(measured: Normalization) -> None:
    """Print a table and the lines for a config."""
    kind = f"{len(measured.mean)} x {measured.dtype}"
    table = Table(title=f"{measured.num_images:,} images, {kind}", title_justify="left")
    for name in ("channel", "mean", "std", "low", "high", "missing"):
        table.add_column(name, justify="right")
    rows = zip(
        measured.mean,
        measured.std,
        measured.low,
        measured.high,
        measured.missing_share,
        strict=True,
    )
    for channel, (*numbers, missing) in enumerate(rows):
        table.add_row(str(channel), *(f"{number:.6g}" for number in numbers), f"{missing:.2%}")
    Console().print(table)
    print(f"mean = {measured.mean}")
    print(f"std = {measured.std}")
    print(f"clip = ({measured.low}, {measured.high})")


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 after an error that was printed.
    """
    args = parse_args(argv)
    try:
        measured = measure_normalization(
            args.data,
            percentiles=tuple(args.percentiles),
            missing=args.missing,
            no_data=args.no_data,
            constant=args.constant,
            num_threads=args.threads,
            progress=True,
        )
        path = measured.save(args.out)
    except (OSError, ValueError, BadImagesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(measured)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
