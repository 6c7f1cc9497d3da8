"""Classify an image with an ONNX file of tools/deployment/export_onnx.py.

Nothing here is of this project, and nothing of torch: numpy, onnxruntime and Pillow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

PIXELS = "RGB, pixel values 0 to 255"


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="image file, of any size")
    parser.add_argument("model", help="ONNX file of a classifier, with normalisation in it")
    parser.add_argument(
        "--size", type=int, default=224, help="pixels, where the file does not fix them (224)"
    )
    parser.add_argument("--topk", type=int, default=5, help="classes to print")
    return parser.parse_args()


def main() -> int:
    """Exit status: 0 once the classes are printed, 2 when a file is missing or of another kind."""
    args = parse_args()
    for path in (args.image, args.model):
        if not Path(path).is_file():
            print(f"image_demo_onnx.py: no such file: {path}", file=sys.stderr)
            return 2
    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    expects = session.get_modelmeta().custom_metadata_map.get("input", "nothing")
    if not expects.endswith(PIXELS):
        print(
            f"image_demo_onnx.py: this needs a file that expects {PIXELS}; {args.model} says: "
            f"{expects}",
            file=sys.stderr,
        )
        return 2
    # A side that the file leaves free is there with its name.
    sides = session.get_inputs()[0].shape[2:]
    height, width = (side if isinstance(side, int) else args.size for side in sides)

    image = Image.open(args.image).convert("RGB")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    image_NCHW = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None]
    (logits,) = session.run(["logits"], {"image": image_NCHW})
    scores = np.exp(logits[0] - logits[0].max())
    scores /= scores.sum()
    for label in scores.argsort()[::-1][: args.topk]:
        print(f"{100 * scores[label]:5.1f} %  class {label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
