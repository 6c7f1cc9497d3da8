"""Show what a pre-trained FCMAE reconstructs: original, masked, prediction and composite."""

from __future__ import annotations

import argparse
import sys

from mmconvnextv2.apis.reconstruct import reconstruct


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file of the pre-training run")
    parser.add_argument("checkpoint", help="checkpoint of that run, with encoder and decoder")
    parser.add_argument("images", help="an image, or a folder of images")
    parser.add_argument("--out", default="reconstruction.png", help="picture to write (PNG)")
    parser.add_argument("--num", type=int, default=8, help="most images to show")
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks")
    parser.add_argument(
        "--mask-ratio", type=float, help="share of cells to remove (default: the config's)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side, or height and width, in multiples of 32 (default: the training crop)",
    )
    parser.add_argument("--device", default="cpu", help="where to run, for example cuda:0")
    args = parser.parse_args(argv)
    if args.size is not None and len(args.size) > 2:
        parser.error(f"--size takes one or two numbers, got {len(args.size)}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Draw the picture; one line says where it is, or why there is none."""
    args = parse_args(argv)
    size = None if args.size is None else (args.size[0], args.size[-1])
    try:
        grid = reconstruct(
            args.images,
            args.checkpoint,
            args.out,
            config=args.config,
            num_images=args.num,
            seed=args.seed,
            mask_ratio=args.mask_ratio,
            image_size=size,
            device=args.device,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {grid.width}x{grid.height} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
