"""The project in minutes on two CPU cores: pre-training, fine-tuning, pictures, a report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.launch import USER_ERRORS, train
from mmconvnextv2.apis.predict import Predictor
from mmconvnextv2.apis.reconstruct import reconstruct
from mmconvnextv2.checkpoint.validity import newest_valid_checkpoint
from mmconvnextv2.datasets.sample_set import build_sample_set
from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.curves import plot_loss_curve, read_scalars
from mmconvnextv2.visualization.files import save_png
from mmconvnextv2.visualization.overlays import contact_sheet
from mmconvnextv2.visualization.report import Figure, Section, write_report

GOALS = dict(top1=90.0, bbox_mAP_50=0.5, segm_mAP_50=0.45, mIoU=60.0)
"""What the fine-tuned models should reach on the held-out split; top-1 and mIoU in percent."""


@dataclass(frozen=True)
class Phase:
    """What a phase leaves: figures for metrics.json, and its part of the report."""

    metrics: dict[str, float]
    section: Section


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/sample_set"), help="sample set; made if not there"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="results")
    parser.add_argument(
        "--phases", nargs="+", choices=list(PHASES), default=list(PHASES), help="what to run"
    )
    return parser.parse_args(argv)


def pretrain(data: Path, work_dir: Path, options: dict[str, Any]) -> Phase:
    """Pre-train Atto with FCMAE, and draw what it reconstructs of held-out images."""
    cfg = sample_config("fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py", options)
    cfg.train_dataloader.dataset.dataset.data_root = str(data / "pretrain")
    cfg.work_dir = str(work_dir / "fcmae")
    runner = train(cfg, overwrite=True)

    steps, losses = read_scalars(runner.log_dir)
    grid = work_dir / "fcmae_reconstruction.png"
    reconstruct(
        data / "detection" / "val", checkpoint(cfg.work_dir), grid, config=cfg, num_images=6
    )
    section = Section(
        "FCMAE pre-training",
        "Atto learns to fill in 60 % of each image from the rest, without labels. The loss is the "
        "mean squared error on removed cells against per-patch normalised pixels, so a model that "
        "has learned nothing has a loss of about 1. Each value is a mean of "
        f"{cfg.default_hooks.logger.interval} steps.\n\n"
        "The pictures are of held-out photographs and digits. Brightness and contrast of a removed "
        "cell are taken from the image: the model predicts structure, not these.",
        table=[
            ("loss, first steps", "loss, last steps", "steps", "checkpoint"),
            (f"{losses[0]:.3f}", f"{losses[-1]:.3f}", steps[-1], checkpoint(cfg.work_dir)),
        ],
        figures=[
            loss_curve(runner, work_dir / "fcmae_loss.png"),
            Figure(grid, "Original, masked, prediction, and both put together"),
        ],
    )
    return Phase(dict(fcmae_loss_first=losses[0], fcmae_loss_last=losses[-1]), section)


def classify(data: Path, work_dir: Path, options: dict[str, Any]) -> Phase:
    """Fine-tune a digit classifier from the FCMAE encoder."""
    cfg = sample_config("convnextv2/convnextv2-atto_fcmae-pre_1xb16-coslr-18e_sample.py", options)
    for loader in (cfg.train_dataloader.dataset, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data / "classification")
    runner, figures = fine_tune(cfg, work_dir, "classification", "fcmae")

    folders = sorted((data / "classification" / "val").iterdir())
    sheet = draw_predictions(cfg, [sorted(folder.glob("*.jpg"))[0] for folder in folders], 5)
    return transfer_phase(
        "Classification",
        f"A linear head on the encoder, fine-tuned together for {cfg.train_cfg.max_epochs} epochs.",
        dict(top1=validated(runner, "accuracy/top1")),
        [*figures, Figure(sheet, "Held-out digits, one a class, with the predicted class")],
    )


def detect(data: Path, work_dir: Path, options: dict[str, Any]) -> Phase:
    """Fine-tune Mask R-CNN from the digit classifier."""
    cfg = sample_config("mask_rcnn/mask-rcnn_convnextv2-atto_fpn_1xb4-1e_sample.py", options)
    root = data / "detection"
    for loader in (cfg.train_dataloader.dataset, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f"{root}/"
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(root / "annotations" / "instances_val.json")
    runner, figures = fine_tune(cfg, work_dir, "detection", "classification")

    sheet = draw_predictions(cfg, sorted((root / "val").glob("*.jpg"))[:8], 4)
    return transfer_phase(
        "Detection",
        "Mask R-CNN with a feature pyramid, from the digit classifier's encoder.",
        {name: validated(runner, f"coco/{name}") for name in ("bbox_mAP_50", "segm_mAP_50")},
        [*figures, Figure(sheet, "Held-out images: what is found with a score above 0.5")],
    )


def segment(data: Path, work_dir: Path, options: dict[str, Any]) -> Phase:
    """Fine-tune UperNet from the digit classifier."""
    cfg = sample_config("upernet/convnextv2-atto_upernet_1xb16-1000i_sample.py", options)
    root = data / "segmentation"
    for loader in (cfg.train_dataloader.dataset, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(root)
    runner, figures = fine_tune(cfg, work_dir, "segmentation", "classification")

    images = sorted((root / "images" / "validation").glob("*.jpg"))[:8]
    sheet = draw_predictions(cfg, images, 4)
    return transfer_phase(
        "Segmentation",
        "UperNet, from the digit classifier's encoder. The soft edges of the digits are unlabelled "
        "and do not count.",
        dict(mIoU=validated(runner, "mIoU")),
        [*figures, Figure(sheet, "Held-out images, tinted with the predicted class")],
    )


def sample_config(name: str, options: dict[str, Any]) -> Config:
    """One of the sample set's configs, with some of its keys set otherwise."""
    cfg = Config.fromfile(config_path(name))
    cfg.merge_from_dict(options)
    return cfg


def checkpoint(folder: str | Path) -> str:
    """Newest checkpoint of a run.

    Raises:
        FileNotFoundError: its phase has not been run.
    """
    path = newest_valid_checkpoint(folder)
    if path is None:
        raise FileNotFoundError(f"{folder} has no checkpoint: run its phase first (--phases)")
    return str(path)


def fine_tune(cfg: Config, work_dir: Path, name: str, init: str) -> tuple[Runner, list[Figure]]:
    """Train one task from the newest checkpoint of another; returns its Runner and its curve."""
    cfg.work_dir = str(work_dir / name)
    cfg.model.backbone.init_cfg.checkpoint = checkpoint(work_dir / init)
    runner = train(cfg, overwrite=True)
    return runner, [loss_curve(runner, work_dir / f"{name}_loss.png")]


def draw_predictions(cfg: Config, images: Sequence[Path], columns: int) -> Path:
    """Draw what the run of a config says of images, beside its folder; returns the sheet."""
    predictor = Predictor(checkpoint(cfg.work_dir), cfg, "cpu")
    pictures = [Image.open(path).convert("RGB") for path in images]
    drawn = [predictor.draw(picture, predictor.find(picture)) for picture in pictures]
    return save_png(contact_sheet(drawn, columns), Path(cfg.work_dir).with_suffix(".png"))


def validated(runner: Runner, metric: str) -> float:
    """One of the field's own metrics on the held-out split, from the run's last validation."""
    return runner.message_hub.get_scalar(f"val/{metric}").current()


def loss_curve(runner: Runner, path: Path) -> Figure:
    """Draw what the run logged."""
    steps, losses = read_scalars(runner.log_dir)
    return Figure(plot_loss_curve(steps, losses, path), "Training loss")


def transfer_phase(
    heading: str, text: str, metrics: dict[str, float], figures: list[Figure]
) -> Phase:
    """Put the figures of a task beside what they should reach, and say why where they do not."""
    metrics = {name: float(value) for name, value in metrics.items()}
    rows = [(name, f"{value:.3g}", f"{GOALS[name]:g}") for name, value in metrics.items()]
    if any(value < GOALS[name] for name, value in metrics.items()):
        text += (
            "\n\nWhat stays below its goal does so for want of steps: the schedules are cut to fit "
            "minutes on two cores, and longer ones reach more."
        )
    table = [("metric on the held-out split", "reached", "goal"), *rows]
    return Phase(metrics, Section(heading, text, table=table, figures=figures))


def run(args: argparse.Namespace, options: dict[str, dict[str, Any]]) -> Path:
    """Run the phases in order, each with its own config options; returns the report."""
    seconds: dict[str, float] = {}
    phases: list[Phase] = []

    def timed(name: str, description: str, work: Callable[[], Any]) -> Any:
        print(f"\n== {description} ==", flush=True)
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    args.work_dir.mkdir(parents=True, exist_ok=True)
    if not (args.data / "sample_set.json").is_file():
        timed("sample_set", "building the sample set", lambda: build_sample_set(args.data))
    for name, (description, work) in PHASES.items():
        if name in args.phases:
            changes = options.get(name, {})
            phase = timed(name, description, partial(work, args.data, args.work_dir, changes))
            phases.append(phase)

    metrics: dict[str, Any] = {k: v for phase in phases for k, v in phase.metrics.items()}
    metrics["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    write_atomically(
        args.work_dir / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode()
    )
    this_run = Section(
        "This run",
        f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores.",
        table=[("phase", "seconds"), *((name, f"{s:.0f}") for name, s in seconds.items())],
    )
    report = args.work_dir / "report.html"
    title = "ConvNeXt V2 on the sample set"
    return write_report(report, title, [*(phase.section for phase in phases), this_run])


PHASES: dict[str, tuple[str, Callable[[Path, Path, dict[str, Any]], Phase]]] = {
    "fcmae": ("pre-training ConvNeXt V2 Atto with FCMAE", pretrain),
    "classification": ("fine-tuning a digit classifier", classify),
    "detection": ("fine-tuning Mask R-CNN", detect),
    "segmentation": ("fine-tuning UperNet", segment),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line for what the user can put right."""
    try:
        report = run(parse_args(argv), options={})
    except USER_ERRORS as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    print(f"\nmetrics {report.with_name('metrics.json')}\nreport  {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
