"""`dataload`: decoded and augmented images per second of one core, ours against mmpretrain's."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmconvnextv2.benchmark.arguments import positive_int
from mmconvnextv2.benchmark.compare import Comparison, Row, Settings
from mmconvnextv2.benchmark.jpegs import find_jpegs, make_jpegs
from mmconvnextv2.benchmark.measure import measure
from mmconvnextv2.benchmark.peers import LeftOut, import_peer

BASELINE = "mmpretrain's default"

CONFIG = "_base_/fcmae.py"
"""Where our pipeline is written, below configs/."""

MMPRETRAIN_PIPELINE: list[dict[str, Any]] = [
    dict(type="LoadImageFromFile"),
    dict(
        type="RandomResizedCrop",
        scale=224,
        crop_ratio_range=(0.2, 1.0),
        backend="pillow",
        interpolation="bicubic",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
"""The pipeline of mmpretrain's configs/_base_/datasets/imagenet_bs512_mae.py."""

Transform = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Pipeline:
    """One way from a file to a training image.

    Attributes:
        name: what tables call it.
        build: makes the transform; raises `LeftOut` where it cannot.
    """

    name: str
    build: Callable[[], Transform]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone understands."""
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="JPEGs to read (made for the run)"
    )
    parser.add_argument("--count", type=positive_int, default=64, help="how many at most (64)")


def run(settings: Settings, args: argparse.Namespace) -> Comparison:
    """Run each pipeline over the same files, with the same seed, in this process and one thread.

    The files are read once before, so they come from memory: decoding is measured, not the disk.

    Args:
        settings: how to measure.
        args: ``images`` and ``count``.

    Raises:
        ValueError: the folder holds no JPEG files.
    """
    group = "one process, one thread"
    found = Comparison()
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = _files(args, Path(folder), settings.seed)
        except LeftOut as reason:
            found.left_out.append(dict(group=group, name="everything", reason=str(reason)))
            return found
        calls = {}
        for pipeline in PIPELINES:
            if not settings.wants(group, pipeline.name):
                continue
            try:
                calls[pipeline.name] = _reader(pipeline.build(), files, settings.seed)
            except LeftOut as reason:
                left = dict(group=group, name=pipeline.name, reason=str(reason))
                found.left_out.append(left)
        timings = _measure_in_one_thread(calls, settings, group)
    for name, timing in timings.items():
        row = Row(group, name, len(files), timing)
        if BASELINE in timings:
            row.baseline = BASELINE
            row.speedup = timings[BASELINE].median / timing.median
        found.rows.append(row)
    return found


def our_pipeline() -> Transform:
    """The pre-training pipeline as our config writes it."""
    configs = import_peer("mmconvnextv2.apis.configs")
    config_class = import_peer("mmengine.config", "onedl-mmengine").Config
    try:
        config = config_class.fromfile(configs.config_path(CONFIG))
    except FileNotFoundError as error:
        raise LeftOut(str(error)) from error
    import_peer("mmconvnextv2.datasets")
    return _compose(config.train_pipeline)


def mmpretrain_pipeline() -> Transform:
    """The pipeline that mmpretrain pre-trains MAE with."""
    return _compose(MMPRETRAIN_PIPELINE)


def decoding_alone() -> Transform:
    """OpenCV's decoder, which mmpretrain's pipeline uses, and nothing else."""
    cv2 = import_peer("cv2", "opencv-python")

    def decode(results: dict[str, Any]) -> Any:
        return cv2.imread(results["img_path"])

    return decode


PIPELINES = (
    Pipeline(BASELINE, mmpretrain_pipeline),
    Pipeline("ours", our_pipeline),
    Pipeline("decoding alone", decoding_alone),
)
"""What is compared."""


def _files(args: argparse.Namespace, folder: Path, seed: int) -> list[Path]:
    if args.images is not None:
        return find_jpegs(args.images, args.count, seed)
    return make_jpegs(folder, args.count, seed)


def _compose(pipeline: Sequence[dict[str, Any]]) -> Transform:
    import_peer("mmpretrain.datasets", "onedl-mmpretrain")
    scope = import_peer("mmengine.registry").DefaultScope
    with scope.overwrite_default_scope("mmpretrain"):
        return import_peer("mmengine.dataset").Compose(pipeline)


def _reader(transform: Transform, files: Sequence[Path], seed: int) -> Callable[[], None]:
    seeding = import_peer("mmconvnextv2.seeding")

    def read() -> None:
        # The same crops in each call and for each pipeline.
        seeding.seed_everything(seed)
        for file in files:
            transform(dict(img_path=str(file)))

    return read


def _measure_in_one_thread(
    calls: dict[str, Callable[[], None]], settings: Settings, group: str
) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _set_opencv_threads(1)
        return measure(
            calls,
            repeat=settings.repeat,
            warmup=max(1, settings.warmup),
            min_seconds=settings.min_seconds,
            on_sample=lambda name: settings.progress(f"{group}: timing {name}"),
        )
    finally:
        torch.set_num_threads(threads)
        _set_opencv_threads(-1)


def _set_opencv_threads(number: int) -> None:
    """Set OpenCV's own threads where a pipeline may use it; -1 is its default."""
    try:
        import_peer("cv2").setNumThreads(number)
    except LeftOut:
        return
