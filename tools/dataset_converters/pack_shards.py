"""Pack a folder of images into tar shards in WebDataset's layout, index shards, verify them.

Example:
    python tools/dataset_converters/pack_shards.py pack data/images data/shards
    python tools/dataset_converters/pack_shards.py verify data/shards
    python tools/dataset_converters/pack_shards.py index shards/of/another/origin
"""

from __future__ import annotations

import argparse
import sys

from mmconvnextv2.datasets.shard_index import Shards
from mmconvnextv2.datasets.shard_packing import index_folder, pack_folder, verify_folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The parsed arguments.
    """
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, default=8, help="files to read at a time")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = dict(parents=[common], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    pack = commands.add_parser(
        "pack", help="pack a folder; run it again to go on after an interruption", **defaults
    )
    pack.add_argument("source", help="folder of images, searched with all folders below it")
    pack.add_argument("shards", help="folder for the shards")
    pack.add_argument("--shard-size", type=int, default=1000, metavar="MB", help="size of a shard")
    index = commands.add_parser(
        "index", help="index shards that another tool has packed", **defaults
    )
    index.add_argument("shards", help="folder of .tar files; the index is written beside them")
    verify = commands.add_parser(
        "verify", help="compare every image with the index by its CRC-32", **defaults
    )
    verify.add_argument("shards", help="folder of shards")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do what is asked for and print the number of images.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 after an error that was printed.
    """
    args = parse_args(argv)
    options = dict(num_threads=args.threads, progress=True)
    try:
        if args.command == "pack":
            max_bytes = args.shard_size * 1_000_000
            pack_folder(args.source, args.shards, max_bytes=max_bytes, **options)
        elif args.command == "index":
            index_folder(args.shards, **options)
        else:
            verify_folder(args.shards, **options)
        shards = Shards(args.shards)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.shards}: {len(shards):,} images in {len(shards.paths):,} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
