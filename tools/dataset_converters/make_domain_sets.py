"""Build sets of real images that are not photographs: 16 bit, one or several channels, masks.

Example:
    python tools/dataset_converters/make_domain_sets.py data/domains --domains nuclei
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmconvnextv2.datasets.domain_sets import DOMAINS, build_domain_set, describe_domains


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The parsed arguments.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0],
        epilog=describe_domains(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out_dir", help="each domain becomes a folder of this one")
    parser.add_argument(
        "--domains",
        nargs="+",
        choices=list(DOMAINS),
        default=list(DOMAINS),
        help="domains to build; all of them unless given",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace older sets")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Build the sets and print their folders.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 after an error that was printed in one line.
    """
    args = parse_args(argv)
    try:
        for name in args.domains:
            root = Path(args.out_dir) / name
            print(build_domain_set(root, name, overwrite=args.overwrite))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
