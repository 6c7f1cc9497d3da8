"""Continue FCMAE from published weights on any folder of images.

Example:
    python tools/continue_pretraining.py data/slides --init hf://timm/convnextv2_tiny.fcmae
"""

from __future__ import annotations

import argparse
import inspect
import sys

from mmconvnextv2.apis.cfg_options import CfgOptions
from mmconvnextv2.apis.continue_pretraining import continue_pretraining
from mmconvnextv2.apis.launch import USER_ERRORS, add_start_arguments
from mmconvnextv2.apis.settings import settings_table
from mmconvnextv2.checkpoint.inflation import INFLATION_MODES


def parse_args() -> argparse.Namespace:
    """Read the command line; the defaults are those of `continue_pretraining`."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0],
        epilog=f"what suits the number of images:\n\n{settings_table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="folder of images, nested or flat, without labels")
    parser.add_argument(
        "--init",
        required=True,
        metavar="CHECKPOINT",
        help="weights of any publisher: a file, URL or hub id; they decide the architecture",
    )
    parser.add_argument("--work-dir", help="folder for results (%(default)s)")
    images = parser.add_argument_group("images that are not 8-bit RGB")
    images.add_argument("--in-channels", type=int, help="1 to 16 (recognised from the files)")
    images.add_argument(
        "--normalization",
        metavar="FILE.json",
        help="what measure_normalization.py wrote (measured from the training images)",
    )
    images.add_argument(
        "--missing", choices=("refuse", "ignore"), help="NaN and no-data values (%(default)s)"
    )
    images.add_argument("--no-data", type=float, help="number that stands for a missing value")
    images.add_argument(
        "--inflate-stem",
        choices=INFLATION_MODES,
        help="more channels than the checkpoint's: further ones beside known ones (mean), or all "
        "alike (sum) (%(default)s)",
    )
    schedule = parser.add_argument_group("schedule (defaults: by the number of images, see below)")
    schedule.add_argument("--epochs", type=int)
    schedule.add_argument("--batch-size", type=int, help="images of one forward pass")
    schedule.add_argument("--accumulate", type=int, help="forward passes of one optimizer step")
    schedule.add_argument("--base-lr", type=float, help="decoder's rate for 256 images a step")
    schedule.add_argument("--encoder-rate", type=float, help="factor of it for the encoder")
    schedule.add_argument("--mask-ratio", type=float, help="share of cells to remove")
    schedule.add_argument("--held-out-share", type=float, help="share of images to hold out")
    schedule.add_argument(
        "--group-by",
        choices=("file", "folder"),
        help="hold out single files, or whole folders where their files are alike (%(default)s)",
    )
    schedule.add_argument(
        "--early-stop",
        type=int,
        metavar="N",
        help="end after N validations, of about 20, without a lower held-out loss (never)",
    )
    parser.add_argument("--image-size", type=int, help="pixels, a multiple of 32 (%(default)s)")
    parser.add_argument("--num-workers", type=int, help="processes that read (%(default)s)")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16")
    add_start_arguments(parser)
    parser.add_argument(
        "--cfg-options", nargs="+", action=CfgOptions, metavar="KEY=VALUE", help="config settings"
    )
    parameters = inspect.signature(continue_pretraining).parameters.values()
    parser.set_defaults(**{p.name: p.default for p in parameters if p.default is not p.empty})
    return parser.parse_args()


def main() -> int:
    """Run; one line and exit code 2 for what the user can put right."""
    try:
        checkpoint = continue_pretraining(**vars(parse_args()))
    except (ValueError, *USER_ERRORS) as error:
        print(f"continue_pretraining.py: {error}", file=sys.stderr)
        return 2
    print(f"continued weights: {checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
