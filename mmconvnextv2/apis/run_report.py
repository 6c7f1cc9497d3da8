"""One page about a run: settings, curves, pictures, features, figures, machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmconvnextv2.analysis.block_features import block_names
from mmconvnextv2.analysis.encoders import load_encoder
from mmconvnextv2.analysis.feature_statistics import COLLAPSED_BELOW, block_diversity, mean_by_stage
from mmconvnextv2.analysis.image_batches import ImageBatches
from mmconvnextv2.analysis.published_curves import PAPER_CURVES, layer_positions
from mmconvnextv2.apis.launch import USER_ERRORS
from mmconvnextv2.apis.predict import Predictor
from mmconvnextv2.apis.reconstruct import reconstruct
from mmconvnextv2.apis.run_facts import (
    describe_run,
    environment_rows,
    headline,
    settings_facts,
)
from mmconvnextv2.apis.run_figures import (
    last_metrics,
    logged_window,
    metric_rows,
    run_charts,
    run_tiles,
)
from mmconvnextv2.apis.run_record import (
    RunRecord,
    innermost_dataset,
    read_run,
    sample_images,
    training_crop,
)
from mmconvnextv2.datasets.image_reading import read_image
from mmconvnextv2.version import __version__
from mmconvnextv2.visualization.charts import Chart, Line, Role
from mmconvnextv2.visualization.report import Figure, Gallery, Section, write_report
from mmconvnextv2.visualization.strips import split_grid

NUM_RECONSTRUCTIONS = 6
NUM_PREDICTIONS = 8
MOST_NAMED = 4
NUM_ENCODED = 32
"""Images on which feature diversity is measured."""

_LOSS_TEXT = {
    "pretraining": "Mean squared error on removed cells against per-patch normalised pixels: a "
    "model that has learned nothing scores 1.",
}


def report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write one self-contained HTML page about a run of any task.

    Curves, metrics and settings come from the run's log and config. Where checkpoint and images
    are at hand, the model is also asked: for reconstructions or predictions, on held-out images if
    the run has some, and for the diversity of its encoder's features. What cannot be shown is
    named on the page, with the reason. Everything is computed on the CPU.

    Args:
        run: folder of the run, finished or not.
        out: HTML file to write; ``report.html`` in the folder of the run when None.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder, or it holds no run.
        ValueError: the run's config or log cannot be read.
    """
    record = read_run(run)
    kicker, title = headline(record)
    sections = [
        _curves_section(record),
        _attempt(*_pictures(record)),
        *_metrics_section(record),
        _attempt("Feature diversity", lambda heading: _diversity_section(record, heading)),
        Section(
            "Settings",
            facts=settings_facts(record),
            folded=("The whole config", record.config.pretty_text),
        ),
        Section(
            "Hardware and versions",
            "What the run's log recorded, beside what wrote this page. A dash stands for what is "
            "not recorded or not installed.",
            table=environment_rows(record),
        ),
    ]
    return write_report(
        record.folder / "report.html" if out is None else out,
        title,
        sections,
        kicker=kicker,
        subtitle=describe_run(record),
        tiles=run_tiles(record),
        footer=f"Written by mmconvnextv2 {__version__}. This page needs no other file.",
    )


def _attempt(heading: str, make: Callable[[str], Section]) -> Section:
    """A section, or one that says why it is missing."""
    try:
        return make(heading)
    except (*USER_ERRORS, ValueError) as error:
        return Section(heading, f"Not shown: {error}")


def _curves_section(record: RunRecord) -> Section:
    charts = run_charts(record)
    if not charts:
        return Section("Training", "The run has logged nothing yet.")
    how = (
        "Lines are as logged: a point of what is measured in every step is the mean of the "
        f"{logged_window(record)} steps before it. Beside a title, last is the line's last point."
    )
    text = "\n\n".join(part for part in (_LOSS_TEXT.get(record.task), how) if part)
    return Section("Training", text, charts=charts)


def _metrics_section(record: RunRecord) -> list[Section]:
    validations = {len(steps) for steps, _ in record.scalars.val.values()}
    if not validations:
        return []
    if validations == {1}:
        return [Section("Metrics", "On held-out images.", facts=last_metrics(record))]
    return [Section("Metrics", table=metric_rows(record))]


def _pictures(record: RunRecord) -> tuple[str, Callable[[str], Section]]:
    if record.task == "pretraining":
        return "Reconstructions", lambda heading: _reconstruction_section(record, heading)
    names = {"detection": "Detections", "segmentation": "Segmentations"}
    name = names.get(record.task, "Predictions")
    return name, lambda heading: _prediction_section(record, heading)


def _checkpoint(record: RunRecord) -> Path:
    if record.checkpoint is None:
        raise ValueError(record.no_checkpoint)
    return record.checkpoint


def _reconstruction_section(record: RunRecord, heading: str) -> Section:
    grid, source = _reconstruction_grid(record)
    size_HW = training_crop(record.config)
    if size_HW is None:
        raise ValueError("the config does not say how large the images are")
    strips = split_grid(grid, *size_HW)[:NUM_RECONSTRUCTIONS]
    return Section(
        heading,
        f"{source} From left to right: original, masked, prediction, and both put together. "
        "Brightness and contrast of a removed cell are taken from the image: the model predicts "
        "structure.",
        gallery=Gallery([Figure(strip, "") for strip in strips], columns=2),
    )


def _reconstruction_grid(record: RunRecord) -> tuple[Image.Image, str]:
    """Reconstructions of held-out images, else the newest picture that the run has drawn."""
    saved = sorted((record.folder / "reconstructions").glob("*.png"))
    if saved and not innermost_dataset(record.config, "val_dataloader"):
        with Image.open(saved[-1]) as picture:
            unit, _, count = saved[-1].stem.partition("_")
            return picture.convert("RGB"), f"Training images, drawn at {unit} {int(count)}."
    images = sample_images(record.config, NUM_RECONSTRUCTIONS)
    checkpoint = _checkpoint(record)
    with tempfile.TemporaryDirectory() as folder:
        for i, path in enumerate(images.paths):
            shutil.copyfile(path, Path(folder) / f"{i:03d}{path.suffix}")
        grid = reconstruct(folder, checkpoint, config=record.config, num_images=len(images.paths))
    return grid, f"{images.kind.capitalize()}, by {checkpoint.name}."


def _prediction_section(record: RunRecord, heading: str) -> Section:
    images = sample_images(record.config, NUM_PREDICTIONS)
    checkpoint = _checkpoint(record)
    predictor = Predictor(checkpoint, record.config, "cpu")
    figures = []
    shown: set[int] = set()
    for path in images.paths:
        image = Image.fromarray(read_image(path))
        sample = predictor.find(image)
        caption = _in_words(predictor.figures(sample))
        figures.append(Figure(predictor.draw(image, sample), caption))
        if predictor.task == "segmentation":
            shown |= set(sample.pred_sem_seg.data.unique().tolist())
    colours = [
        (predictor.classes[label], predictor.palette[label])
        for label in sorted(shown)
        if any(predictor.palette[label])
    ]
    notes = {
        "classification": "the most likely class and its score",
        "detection": "what is found with a score of at least 0.5",
        "segmentation": "tinted with the predicted class",
    }
    return Section(
        heading,
        f"{images.kind.capitalize()}, {notes[predictor.task]}. By {checkpoint.name}.",
        gallery=Gallery(figures, columns=4, colours=colours),
    )


def _in_words(found: Mapping[str, Any]) -> str:
    """What a model says of an image, in a line; a segmentation has its colours for that."""
    if "shares" in found:
        return ""
    objects = sorted(found.get("objects", [found]), key=lambda item: -item["score"])
    texts = [f"{item['class']} {item['score']:.2f}" for item in objects[:MOST_NAMED]]
    more = f" and {len(objects) - MOST_NAMED} more" if len(objects) > MOST_NAMED else ""
    return ", ".join(texts) + more or "nothing found"


def _diversity_section(record: RunRecord, heading: str) -> Section:
    checkpoint = _checkpoint(record)
    images = sample_images(record.config, NUM_ENCODED)
    with tempfile.TemporaryDirectory() as folder:
        # The run's config may be one that a checkpoint holds and no file.
        config = Path(folder) / "config.py"
        record.config.dump(config)
        encoder = load_encoder("encoder", config, checkpoint)
    side = max(32, min(training_crop(record.config) or (224, 224)) // 32 * 32)
    batches = ImageBatches(encoder, [str(path) for path in images.paths], side, 8, 2)
    with torch.inference_mode():
        diversity_NB = torch.cat(
            [block_diversity(encoder.backbone, x_NCHW) for _, x_NCHW in batches]
        )
    stages = mean_by_stage(diversity_NB, block_names(encoder.backbone)).mean(dim=0).tolist()
    collapsed = [str(i) for i, value in enumerate(stages, start=1) if value < COLLAPSED_BELOW]
    verdict = f" Collapsed: stage {', '.join(collapsed)}." if collapsed else ""
    return Section(
        heading,
        "Mean cosine distance between the channels inside each block: about 0.5 where they have "
        "nothing in common, 0 where all are copies of each other. Beside it the paper's figure 4: "
        "an encoder as it should be, and one whose features collapse. "
        f"Measured on {len(diversity_NB)} {images.kind}.{verdict}",
        charts=[_diversity_chart(diversity_NB.mean(dim=0).tolist(), stages)],
    )


def _diversity_chart(values: Sequence[float], stages: Sequence[float]) -> Chart:
    def line(name: str, curve: Sequence[float], role: Role) -> Line:
        return Line(name, layer_positions(len(curve)), curve, role)

    return Chart(
        "Distance by depth",
        [
            line("paper: V2, healthy", PAPER_CURVES["ConvNeXt V2, FCMAE"], "good"),
            line("paper: V1, collapsed", PAPER_CURVES["ConvNeXt V1, FCMAE"], "bad"),
            Line(f"collapse below {COLLAPSED_BELOW:g}", [0, 1], [COLLAPSED_BELOW] * 2, "limit"),
            line("this encoder", values, "main"),
        ],
        xlabel="depth, first block to last",
        value=f"by stage {', '.join(f'{value:.2f}' for value in stages)}",
        size="wide",
        y_range=(0.0, max(0.55, *values)),
    )
