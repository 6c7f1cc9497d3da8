"""Export a backbone, classifier or segmentor to a file that runs without this package.

OUT.onnx is ONNX, OUT.pt2 is torch.export. The file is compared with the model, on batches of noise
and of pictures, before it is put in place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from mmconvnextv2.deployment import CheckFailed, Export, export
from mmconvnextv2.deployment.export import OPSET, TOLERANCE
from mmconvnextv2.deployment.modules import PARTS


def batch_size(text: str) -> int | None:
    """A number of images, or None for "dynamic"."""
    return None if text == "dynamic" else int(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The graph's one input, image, is float32 (N, C, H, W): pixel values 0 to 255 in "
        "the order that the network was trained on, RGB with all configs of this project. Exit "
        "status: 0 written, 1 the file did not compute what the model does, 2 bad input.",
    )
    parser.add_argument("config", help="config of the run; with --part backbone of any task")
    parser.add_argument("checkpoint", help="its checkpoint")
    parser.add_argument("out", metavar="OUT", help="file to write: *.onnx or *.pt2")
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="model",
        help="model: image to logits (default); backbone: image to four feature maps",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="fix the size of the images (default: any; UperNet: that of its training crops)",
    )
    parser.add_argument(
        "--batch",
        type=batch_size,
        metavar="dynamic|N",
        help="number of images (default: dynamic, any number)",
    )
    parser.add_argument(
        "--no-normalize",
        action="store_true",
        help="the caller normalises: the graph expects (pixels - mean) / std",
    )
    parser.add_argument(
        "--fp16", action="store_true", help="float16 weights and arithmetic, norms in float32"
    )
    parser.add_argument(
        "--opset", type=int, default=OPSET, help=f"ONNX operator set (default: {OPSET})"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest error that passes, relative to the largest output (default: "
        + ", ".join(f"{value:g} in {str(dtype)[6:]}" for dtype, value in TOLERANCE.items())
        + ")",
    )
    return parser.parse_args(argv)


def report(result: Export) -> str:
    """Where the file is, what it expects, how exact it is."""
    size = sum(
        file.stat().st_size for file in (result.path, Path(f"{result.path}.data")) if file.is_file()
    )
    lines = [f"{result.path}: {size / 2**20:.1f} MiB"]
    lines += [f"  {name:<9}  {text}" for name, text in result.metadata.items()]
    return "\n".join([*lines, *(f"  checked {comparison}" for comparison in result.comparisons)])


def main(argv: list[str] | None = None) -> int:
    """Export; one message says what is wrong where it cannot."""
    args = parse_args(argv)
    try:
        with Console(stderr=True).status(f"exporting {args.config}"):
            result = export(
                args.config,
                args.checkpoint,
                args.out,
                part=args.part,
                shape=None if args.shape is None else tuple(args.shape),
                batch=args.batch,
                normalize=not args.no_normalize,
                float16=args.fp16,
                opset=args.opset,
                tolerance=args.tolerance,
            )
    except CheckFailed as error:
        print(f"export_onnx.py: {args.out} was not written: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"export_onnx.py: {error}", file=sys.stderr)
        return 2
    print(report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
