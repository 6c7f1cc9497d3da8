"""Segment an image with a config and a checkpoint, and write the picture.

Nothing here is of this project: `custom_imports` in the config brings its classes in.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from mmengine.runner import load_checkpoint
from mmseg.apis import MMSegInferencer
from PIL import Image


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="image file, of any size")
    parser.add_argument("config", help="config of a segmentor, e.g. one of configs/upernet/")
    parser.add_argument("checkpoint", help="its checkpoint")
    parser.add_argument("--out-file", default="segmentation.png", help="picture to write")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours, 0 to 1")
    parser.add_argument("--device", help="cuda:0 or cpu; a GPU where there is one")
    return parser.parse_args()


def main() -> int:
    """Exit status: 0 once the picture is written, 2 when a file is missing."""
    args = parse_args()
    for name in ("image", "config", "checkpoint"):
        path = getattr(args, name)
        if not Path(path).is_file():
            print(f"image_demo_segmentation.py: no such {name}: {path}", file=sys.stderr)
            return 2
    device = args.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    inferencer = MMSegInferencer(args.config, args.checkpoint, device=device, show_progress=False)
    # The inferencer leaves out what does not fit; the picture would then show random weights.
    load_checkpoint(inferencer.model, args.checkpoint, map_location=device, strict=True)
    result = inferencer(args.image, return_vis=True, opacity=args.opacity)

    out = Path(args.out_file)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(result["visualization"]).save(out)
    labels_HW = result["predictions"]
    classes = inferencer.model.dataset_meta["classes"]
    for label, name in enumerate(classes):
        share = (labels_HW == label).mean()
        if share > 0:
            print(f"{100 * share:5.1f} % of the pixels: {name}")
    print(f"picture: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
