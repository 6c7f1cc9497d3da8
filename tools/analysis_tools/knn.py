"""Evaluate an encoder without training: weighted k-nearest neighbours on its pooled features.

The training images of the config, under its test pipeline, are the labelled bank; its validation
images are classified. CONFIG is any of configs/convnextv2 for the architecture at hand, CHECKPOINT
anything with that backbone, pre-trained or fine-tuned. --random-start in its place says what the
same network gets before any training. Runs on one device.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from mmconvnextv2.analysis.knn import Batch, FeatureBank, knn_accuracy
from mmconvnextv2.apis.cfg_options import CfgOptions, apply_options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="classification config, for example one of a linear probe")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint that holds the backbone")
    parser.add_argument("--random-start", type=int, metavar="SEED", help="an untrained backbone")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20], help="numbers of neighbours")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the votes")
    parser.add_argument("--batch-size", type=int, default=128, help="images a forward pass")
    parser.add_argument("--device", default=None, help="default: cuda where there is one, or cpu")
    parser.add_argument("--out", metavar="FILE.json", help="write the accuracies to this file")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help="settings to change in the config",
    )
    args = parser.parse_intermixed_args(argv)  # the checkpoint may stand behind options
    if (args.checkpoint is None) == (args.random_start is None):
        parser.error("give either a checkpoint or --random-start SEED")
    return args


def build_encoder(cfg: Config, start: str | int, device: torch.device) -> torch.nn.Module:
    """Build the config's classifier with the backbone of a checkpoint, strictly loaded.

    Args:
        cfg: the classifier's config.
        start: the checkpoint, or the seed of a random start.
        device: where it will run.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: the checkpoint does not fit the config's backbone.
    """
    settings = copy.deepcopy(cfg.model)
    settings.backbone.update(gap_before_final_norm=True, init_cfg=None)
    if isinstance(start, int):
        torch.manual_seed(start)
    else:
        settings.backbone.init_cfg = dict(type="Pretrained", checkpoint=start)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(settings)
    model.backbone.init_weights()
    return model.to(device).eval()


def build_loader(cfg: Config, split: str, batch_size: int) -> DataLoader:
    """Build a loader of one split, "train" or "val", in order and under the test pipeline.

    Raises:
        ValueError: the config has no such split.
    """
    settings = [cfg.get(f"{name}_dataloader") for name in (split, "val")]
    if None in settings:
        raise ValueError(
            "k-NN needs labelled images for both the bank and the queries, and the config lacks "
            "train_dataloader or val_dataloader: take one of configs/convnextv2 that has both"
        )
    dataset = settings[0].dataset
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset.dataset
    loader = dict(
        batch_size=batch_size,
        num_workers=settings[1].get("num_workers", 0),
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset={**dataset, "pipeline": settings[1].dataset.pipeline},
    )
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return Runner.build_dataloader(loader)


@torch.inference_mode()
def encode(model: Any, batches: Iterable[dict], device: torch.device) -> Iterator[Batch]:
    """Turn batches of a loader into features ``(N, C)`` and labels ``(N,)`` on a device."""
    half = torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()
    for batch in batches:
        data = model.data_preprocessor(batch)
        with half:
            (features_NC,) = model.backbone(data["inputs"])
        labels_N = torch.cat([sample.gt_label for sample in data["data_samples"]])
        yield features_NC.float(), labels_N.to(device)


def evaluate(args: argparse.Namespace) -> dict[str, float]:
    """Do what the command line asks for.

    Returns:
        Accuracies in percent, by name.

    Raises:
        FileNotFoundError: config or checkpoint is not there.
        ValueError: config, checkpoint and options do not fit together.
    """
    if not Path(args.config).is_file():
        raise FileNotFoundError(f"config {args.config!r} is not a file")
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        apply_options(cfg, args.cfg_options)
    if "backbone" not in cfg.model or "num_classes" not in cfg.model.get("head", {}):
        raise ValueError(f"{args.config} builds no classifier: take one of configs/convnextv2")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    start = args.checkpoint if args.random_start is None else args.random_start
    model = build_encoder(cfg, start, device)
    console = Console(stderr=True)

    def run(split: str, text: str) -> tuple[Iterator[Batch], int]:
        loader = build_loader(cfg, split, args.batch_size)
        batches = track(loader, text, console=console, disable=not console.is_terminal)
        return encode(model, batches, device), len(loader.dataset)

    batches, size = run("train", "bank   ")
    bank = FeatureBank.from_batches(batches, size, cfg.model.head.num_classes)
    queries, size = run("val", "queries")
    print(f"{len(bank.labels_B)} labelled images, {size} to classify")
    return knn_accuracy(bank, queries, args.k, args.temperature)


def main(argv: list[str] | None = None) -> int:
    """Print one line for each number of neighbours; exit status 2 where that is not possible."""
    args = parse_args(argv)
    try:
        accuracies = evaluate(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"knn.py: {error}", file=sys.stderr)
        return 2
    for k in args.k:
        print(
            f"k = {k:>3}: top-1 {accuracies[f'k{k}/top1']:.2f} %, "
            f"top-5 {accuracies[f'k{k}/top5']:.2f} %"
        )
    if args.out:
        Path(args.out).write_text(json.dumps(accuracies, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
