"""Pre-train a ConvNeXt V2 with FCMAE on any folder of images."""

from __future__ import annotations

import argparse
import sys

from mmengine.config import DictAction

from mmconvnextv2.apis import pretrain
from mmconvnextv2.datasets import BadImagesError
from mmconvnextv2.nn import ARCHITECTURES


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", help="folder of images, nested or flat, without labels")
    parser.add_argument("--out", default="work_dirs/pretrain", help="folder for results")
    parser.add_argument("--arch", default="tiny", choices=list(ARCHITECTURES))
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--warmup-epochs", type=int, help="a twentieth of the epochs if not given")
    parser.add_argument("--batch-size", type=int, default=64, help="images of one forward pass")
    parser.add_argument("--accumulate", type=int, default=1, help="forward passes of one step")
    parser.add_argument("--base-lr", type=float, default=1.5e-4, help="rate for 256 images a step")
    parser.add_argument("--image-size", type=int, default=224, help="pixels, a multiple of 32")
    parser.add_argument("--num-workers", type=int, default=8, help="processes that read images")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument(
        "--options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="config settings"
    )
    return parser.parse_args()


def main() -> int:
    """Run; one line and exit code 2 for what the user can put right."""
    try:
        pretrain(**vars(parse_args()))
    except (FileNotFoundError, NotADirectoryError, ValueError, BadImagesError) as error:
        print(f"pretrain.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
