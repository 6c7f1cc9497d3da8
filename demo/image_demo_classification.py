"""Classify an image with a config and a checkpoint, and write it with its label.

Nothing here is of this project: `custom_imports` in the config brings its classes in.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from mmcv.image import imread
from mmengine.runner import load_checkpoint
from mmpretrain import ImageClassificationInferencer
from mmpretrain.visualization import UniversalVisualizer

SHORT_SIDE = 480  # pixels of the picture: small images are enlarged until the label can be read


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="image file, of any size")
    parser.add_argument("config", help="config of a classifier, e.g. one of configs/convnextv2/")
    parser.add_argument("checkpoint", help="its checkpoint")
    parser.add_argument("--out-file", default="classification.png", help="picture to write")
    parser.add_argument("--topk", type=int, default=5, help="classes to print")
    parser.add_argument("--device", help="cuda:0 or cpu; a GPU where there is one")
    return parser.parse_args()


def main() -> int:
    """Exit status: 0 once the picture is written, 2 when a file is missing."""
    args = parse_args()
    for name in ("image", "config", "checkpoint"):
        path = getattr(args, name)
        if not Path(path).is_file():
            print(f"image_demo_classification.py: no such {name}: {path}", file=sys.stderr)
            return 2
    device = args.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    inferencer = ImageClassificationInferencer(
        args.config, pretrained=args.checkpoint, device=device
    )
    # The inferencer leaves out what does not fit; the label would then come from random weights.
    load_checkpoint(inferencer.model, args.checkpoint, map_location=device, strict=True)
    (sample,) = inferencer(args.image, return_datasamples=True)

    out = Path(args.out_file)
    out.parent.mkdir(parents=True, exist_ok=True)
    UniversalVisualizer().visualize_cls(
        imread(args.image, channel_order="rgb"),
        sample,
        classes=inferencer.classes,
        draw_gt=False,
        resize=SHORT_SIDE,
        out_file=str(out),
    )
    scores, labels = sample.pred_score.topk(min(args.topk, len(sample.pred_score)))
    for score, label in zip(scores.tolist(), labels.tolist(), strict=True):
        name = inferencer.classes[label] if inferencer.classes else f"class {label}"
        print(f"{100 * score:5.1f} %  {name}")
    print(f"picture: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
