"""Print the parameters and FLOPs of a config's model: classifier, detector, segmentor or FCMAE."""

from __future__ import annotations

import argparse
import sys

from mmengine.config import Config

from mmconvnextv2.analysis.complexity import Complexity, measure_config
from mmconvnextv2.apis.cfg_options import CfgOptions, apply_options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="One FLOP is one multiply-accumulate of a convolution or a matrix product, in the "
        "forward pass of one image. A training step costs about three times as much.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the input (default: the training crop; detectors 800 1280; segmentors the "
        "crop's side and four times that)",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help="settings to change in the config, e.g. model.data_preprocessor.mask_ratio=0.75",
    )
    return parser.parse_args(argv)


def report(complexity: Complexity) -> str:
    """The parts of a model and their sum, one a line."""
    height, width = complexity.shape
    rows = [(part.name, part.parameters, part.cost.flops) for part in complexity.parts]
    rows.append(("total", complexity.parameters, complexity.flops))
    width_of_names = max(len(name) for name, _, _ in rows)
    lines = [f"{complexity.name}, input {height}x{width} (H x W)"]
    for name, parameters, flops in rows:
        lines.append(
            f"  {name:<{width_of_names}}  {parameters / 1e6:10.3f} M  {flops / 1e9:10.3f} GFLOPs"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Count and print; one line says what is wrong with bad input."""
    args = parse_args(argv)
    try:
        cfg = Config.fromfile(args.config)
        if args.cfg_options:
            apply_options(cfg, args.cfg_options)
        complexities = measure_config(cfg, None if args.shape is None else tuple(args.shape))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(report(complexity) for complexity in complexities))
    print("1 FLOP = 1 multiply-accumulate (convolutions and matrix products, forward, one image)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
