"""Draw how FCMAE computes on visible cells alone: docs/images/visible_only.svg."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from mmconvnextv2.apis.launch import USER_ERRORS
from mmconvnextv2.datasets.sample_set.photographs import load_photographs
from mmconvnextv2.files import write_atomically
from mmconvnextv2.nn import random_masking
from mmconvnextv2.visualization.visible_only import draw_visible_only


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--image", type=Path, help="picture; the sample set's cat if not given")
    parser.add_argument("--mask-ratio", type=float, default=0.6, help="share of cells to remove")
    parser.add_argument("--seed", type=int, default=0, help="of the mask")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images/visible_only.svg"), help="SVG to write"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line for what the user can put right."""
    args = parse_args(argv)
    try:
        image = Image.open(args.image) if args.image else load_photographs("train")["chelsea"]
        generator = torch.Generator().manual_seed(args.seed)
        mask_NHW = random_masking(1, (7, 7), args.mask_ratio, generator=generator)
        write_atomically(args.out, draw_visible_only(image, mask_NHW[0]).encode())
    except (ValueError, *USER_ERRORS) as error:
        print(f"draw_visible_only.py: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
