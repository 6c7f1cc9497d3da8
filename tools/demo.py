"""The whole project in minutes on two CPU cores: images, pre-training, pictures, a report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint

from mmconvnextv2.apis import reconstruct
from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.datasets.sample_set import build_sample_set
from mmconvnextv2.visualization.curves import plot_loss_curve, read_scalars
from mmconvnextv2.visualization.files import write_atomically
from mmconvnextv2.visualization.report import Figure, Section, write_report

PRETRAIN_CONFIG = "fcmae/fcmae_convnextv2-atto_1xb32-coslr-16e_sample.py"


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", default="data/sample_set", help="folder of the sample set")
    parser.add_argument("--out", default="work_dirs/demo", help="folder for results")
    parser.add_argument("--epochs", type=int, help="epochs of pre-training; the config's if none")
    return parser.parse_args()


def pretrain(data: Path, out: Path, epochs: int | None) -> tuple[Config, Path]:
    """Pre-train Atto with FCMAE; returns the config and the folder of the run's scalars."""
    cfg = Config.fromfile(config_path(PRETRAIN_CONFIG))
    cfg.train_dataloader.dataset.dataset.data_root = str(data / "pretrain")
    cfg.train_dataloader.num_workers = min(2, os.cpu_count() or 1)
    cfg.train_cfg.max_epochs = epochs or cfg.train_cfg.max_epochs
    cfg.work_dir = str(out)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return cfg, Path(runner.log_dir)


def main() -> int:
    """Run the phases in order and write what they leave."""
    args = parse_args()
    data, out = Path(args.data), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    with phase("sample_set", "building the sample set", seconds):
        build_sample_set(data)
    with phase("fcmae", "pre-training ConvNeXt V2 Atto with FCMAE", seconds):
        cfg, logs = pretrain(data, out / "fcmae", args.epochs)
    checkpoint = Path(find_latest_checkpoint(cfg.work_dir))
    with phase("pictures", "drawing what it reconstructs", seconds):
        grid, curve = out / "fcmae_reconstruction.png", out / "fcmae_loss.png"
        reconstruct(cfg, checkpoint, data / "detection" / "val", grid, num_images=6)
        steps, losses = read_scalars(logs)
        plot_loss_curve(steps, losses, curve, title="FCMAE loss on the sample set")

    metrics = {
        "fcmae_loss_first": losses[0],
        "fcmae_loss_last": losses[-1],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    write_atomically(out / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    report = write_report(
        out / "report.html",
        "ConvNeXt V2 on the sample set",
        [
            Section(
                "FCMAE pre-training",
                "Atto learns to fill in 60 % of each image from the rest. The loss is the mean "
                "squared error on removed cells against per-patch normalised pixels, so a model "
                "that has learned nothing has a loss of about 1. Each value is a mean of ten "
                "steps.\n\nThe pictures are of held-out photographs and digits. Brightness and "
                "contrast of a removed cell are taken from the image: the model predicts "
                "structure, not these.",
                table=[
                    ("loss, first steps", "loss, last steps", "steps"),
                    (f"{losses[0]:.3f}", f"{losses[-1]:.3f}", steps[-1]),
                ],
                figures=[
                    Figure(curve, "Training loss"),
                    Figure(grid, "Original, masked, prediction, and both put together"),
                ],
            ),
            Section(
                "This run",
                f"Python {platform.python_version()}, torch {torch.__version__}, "
                f"{os.cpu_count()} CPU cores, checkpoint {checkpoint}.",
                table=[("phase", "seconds"), *((k, f"{v:.0f}") for k, v in seconds.items())],
            ),
        ],
    )
    print(f"\nloss {losses[0]:.3f} -> {losses[-1]:.3f}\ncheckpoint {checkpoint}\nreport {report}")
    return 0


@contextmanager
def phase(name: str, description: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a phase and note how long it took."""
    print(f"\n== {description} ==", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
