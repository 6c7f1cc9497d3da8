"""Pre-train a ConvNeXt V2 with FCMAE on any folder of images."""

from __future__ import annotations

import argparse
import inspect
import sys

from mmengine.config import DictAction

from mmconvnextv2.apis.launch import USER_ERRORS, add_start_arguments
from mmconvnextv2.apis.pretrain import pretrain
from mmconvnextv2.nn import ARCHITECTURES


def parse_args() -> argparse.Namespace:
    """Read the command line; the defaults are those of `mmconvnextv2.pretrain`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", help="folder of images, nested or flat, or of tar shards")
    parser.add_argument("--work-dir", help="folder for results")
    parser.add_argument("--arch", choices=list(ARCHITECTURES))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--warmup-epochs", type=int, help="a twentieth of the epochs if not given")
    parser.add_argument("--batch-size", type=int, help="images of one forward pass")
    parser.add_argument("--accumulate", type=int, help="forward passes of one optimizer step")
    parser.add_argument("--base-lr", type=float, help="learning rate for 256 images a step")
    parser.add_argument("--image-size", type=int, help="pixels, a multiple of 32")
    parser.add_argument("--num-workers", type=int, help="processes that read images")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16")
    add_start_arguments(parser)
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="config settings"
    )
    parameters = inspect.signature(pretrain).parameters.values()
    parser.set_defaults(**{p.name: p.default for p in parameters if p.default is not p.empty})
    return parser.parse_args()


def main() -> int:
    """Run; one line and exit code 2 for what the user can put right."""
    try:
        pretrain(**vars(parse_args()))
    except (ValueError, *USER_ERRORS) as error:
        print(f"pretrain.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
