"""Detect and segment the objects of one image, and write the picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mmcv
from mmdet.apis import DetInferencer
from mmengine.runner import load_checkpoint


def parse_args() -> argparse.Namespace:
    """Read the command line; the names are those of mmdet's own demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("image", help="image file")
    parser.add_argument("config", help="detection config, e.g. one of configs/mask_rcnn/")
    parser.add_argument("checkpoint", help="checkpoint of a detector trained with that config")
    parser.add_argument("--out-file", default="result.jpg", help="picture to write")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ...")
    parser.add_argument("--score-thr", type=float, default=0.3, help="least score that is drawn")
    return parser.parse_args()


def main() -> int:
    """Exit status: 0 after the picture is written, 2 when a file is not there."""
    args = parse_args()
    for name in ("image", "config", "checkpoint"):
        path = getattr(args, name)
        if not Path(path).is_file():
            print(f"image_demo_detection.py: no such {name}: {path}", file=sys.stderr)
            return 2
    inferencer = DetInferencer(args.config, args.checkpoint, device=args.device)
    # The inferencer leaves out what does not fit; the picture would then show random weights.
    load_checkpoint(inferencer.model, args.checkpoint, map_location=args.device, strict=True)
    result = inferencer(args.image, return_vis=True, pred_score_thr=args.score_thr)
    picture_RGB = result["visualization"][0]
    mmcv.imwrite(mmcv.rgb2bgr(picture_RGB), args.out_file)
    scores = result["predictions"][0]["scores"]
    drawn = sum(score >= args.score_thr for score in scores)
    print(f"{drawn} of {len(scores)} detections drawn: {args.out_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
