"""Extract the features of an image, print their shapes and draw their principal components.

The three directions in which a stage's features vary most over the image become red, green and
blue: positions of one colour look alike to the network. Any checkpoint with the config's encoder
will do, one of FCMAE pre-training as well. Nothing here is of this project: `custom_imports` in the
config brings its classes in.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmpretrain import FeatureExtractor
from PIL import Image

STAGES = (2, 3)  # of strides 16 and 32
CELL = 32  # pixels: sides are rounded to multiples, so that no position is cut off


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="image file, of any size")
    parser.add_argument("config", help="config of a classifier, e.g. one of configs/convnextv2/")
    parser.add_argument("checkpoint", help="checkpoint of the classifier or of its encoder")
    parser.add_argument("--out-file", default="features.png", help="picture to write")
    parser.add_argument(
        "--short-side", type=int, default=448, help="pixels that the image is resized to"
    )
    parser.add_argument("--device", help="cuda:0 or cpu; a GPU where there is one")
    return parser.parse_args()


def build_extractor(args: argparse.Namespace, width: int, height: int) -> FeatureExtractor:
    """A FeatureExtractor that sees the whole image and keeps the positions of two stages apart."""
    config = Config.fromfile(args.config)
    config.test_dataloader.dataset.pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(width, height)),
        dict(type="PackInputs"),
    ]
    config.model.backbone.update(
        out_indices=STAGES,
        gap_before_final_norm=False,
        output_norms=False,
        init_cfg=dict(type="Pretrained", checkpoint=args.checkpoint),
    )
    device = args.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    extractor = FeatureExtractor(config, pretrained=False, device=device)
    # Unlike the argument `pretrained`, the backbone's init_cfg refuses a file that does not fit.
    extractor.model.init_weights()
    return extractor


def principal_colours(feature_CHW: torch.Tensor) -> Image.Image:
    """Map a (C, H, W) feature to an H x W picture of its three principal components."""
    channels, height, width = feature_CHW.shape
    x_NC = feature_CHW.float().cpu().reshape(channels, -1).T
    x_NC = x_NC - x_NC.mean(0)
    _, _, directions_KC = torch.linalg.svd(x_NC, full_matrices=False)
    # The sign of a direction is arbitrary; a fixed one keeps the colours of two runs alike.
    leading_3C = directions_KC[:3]
    leading_3C = leading_3C * leading_3C.sum(1, keepdim=True).sign()
    colours_N3 = (x_NC @ leading_3C.T).numpy()
    low, high = np.percentile(colours_N3, (1, 99), axis=0)
    colours_N3 = (colours_N3 - low) / np.maximum(high - low, 1e-12)
    pixels_HW3 = (255 * colours_N3.clip(0, 1)).astype(np.uint8).reshape(height, width, 3)
    return Image.fromarray(pixels_HW3)


def main() -> int:
    """Exit status: 0 once the picture is written, 2 when a file is missing or does not fit."""
    args = parse_args()
    for name in ("image", "config", "checkpoint"):
        path = getattr(args, name)
        if not Path(path).is_file():
            print(f"feature_extraction.py: no such {name}: {path}", file=sys.stderr)
            return 2
    image = Image.open(args.image).convert("RGB")
    factor = args.short_side / min(image.size)
    width, height = (max(1, round(side * factor / CELL)) * CELL for side in image.size)
    try:
        extractor = build_extractor(args, width, height)
    except ValueError as error:
        print(f"feature_extraction.py: {args.checkpoint}: {error}", file=sys.stderr)
        return 2
    (features,) = extractor(args.image, stage="backbone")

    panels = [image.resize((width, height))]
    for stage, feature_CHW in zip(STAGES, features, strict=True):
        print(f"stage {stage + 1}, stride {4 * 2**stage}: {tuple(feature_CHW.shape)}")
        panels.append(principal_colours(feature_CHW).resize((width, height), Image.NEAREST))
    picture = Image.new("RGB", (width * len(panels), height))
    for i, panel in enumerate(panels):
        picture.paste(panel, (i * width, 0))
    out = Path(args.out_file)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    print(f"picture: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
