"""Fine-tune an encoder for classification, detection or segmentation on a labelled folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmconvnextv2.apis.comparison_recipes import (
    FineTuning,
    check_layout,
    count_images,
    fine_tuning_config,
    with_weights,
)
from mmconvnextv2.apis.filling import log_often_enough
from mmconvnextv2.apis.machine import choose_bf16, choose_workers
from mmconvnextv2.apis.pretrain import DEFAULT_ARCH
from mmconvnextv2.apis.reconstruct import pick_images
from mmconvnextv2.apis.results import RunResult
from mmconvnextv2.apis.run_config import checkpoint_of, read_meta
from mmconvnextv2.apis.run_folder import Resume, choose_start, refuse_occupied_folder
from mmconvnextv2.apis.settings import FINE_TUNING_EPOCHS, epochs_for
from mmconvnextv2.apis.whole_run import accumulated_batches, run, run_config, training_device
from mmconvnextv2.checkpoint import convert_state_dict, read_checkpoint
from mmconvnextv2.datasets.image_scan import TooFewImagesError
from mmconvnextv2.nn import ARCHITECTURES
from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.nn.convnextv2 import Arch

LARGEST_SIZE = {"classification": 224, "detection": 640, "segmentation": 512}
"""Longest side in training by default, in pixels, where the images are no smaller."""

WIDE_FROM = 768
"""Channels of the last stage (Tiny) from which the heads of detection and segmentation have their
usual 256 channels; smaller encoders have heads of 64."""

LONGEST_WARMUP = 500
VALIDATIONS = 10
"""How often a run is measured on its validation images."""

_TRAINING_IMAGES = {
    "classification": "train",
    "detection": "train",
    "segmentation": "images/training",
}
_SIZES_LOOKED_AT = 100


def finetune(
    task: str,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    init: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    effective_batch: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
    num_workers: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    tracker: str | None = None,
    resume: Resume = False,
    overwrite: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> RunResult:
    """Fine-tune a classifier, Mask R-CNN or UperNet on images with labels, of 8-bit RGB.

    `data` is a folder laid out as in `mmconvnextv2.apis.comparison_recipes.LAYOUTS`: class folders
    below ``train`` and ``val``; COCO files ``annotations/instances_{train,val}.json`` with boxes
    and masks of the images in ``train`` and ``val``; or PNG masks of class numbers (255 is ignored)
    in ``annotations/{training,validation}`` for ``images/{training,validation}``.

    The defaults are starting points for small sets, on one GPU or a CPU. Published recipes for
    ImageNet, COCO and ADE20K are in ``configs/``.

    Args:
        task: "classification", "detection" or "segmentation".
        data: folder of images and labels.
        out: folder for checkpoints, logs and the config.
        init: encoder to start from: a checkpoint file, the folder of a run, a URL or a hub id, of
            our own or published weights (docs/checkpoints.md); random when None.
        arch: a name of `mmconvnextv2.nn.ARCHITECTURES`; that of `init` when None, "tiny" without.
        epochs: passes over the training images; by their number when None, see
            `mmconvnextv2.apis.settings.FINE_TUNING_EPOCHS`.
        batch_size: images of one forward pass; 16, for detection 4, when None.
        effective_batch: images behind one optimizer step, a multiple of `batch_size`, to which
            forward passes are accumulated; `batch_size` when None.
        lr: learning rate of a step; when None that of the sample recipes, scaled linearly to
            `effective_batch`, and for wide encoders inversely to their width.
        image_size: longest side of the images in training, in pixels; when None their usual
            longest side, up to `LARGEST_SIZE`.
        num_workers: processes that read images; one a core and at most eight when None.
        precision: "auto" for bfloat16 where a GPU computes it, else float32; "bf16" or "fp32".
        device: "auto" for a GPU where there is one, "cpu" or "cuda".
        tracker: "wandb" or "mlflow", beside TensorBoard, which is always on.
        resume: True goes on from the newest valid checkpoint in `out`, or starts if there is none
            yet; a path names the checkpoint. Give the same arguments again.
        overwrite: replace a run in `out`.
        cfg_options: further settings of the config, as ``{"a.b": value}``.

    Returns:
        Paths and figures, the last validation's among them.

    Raises:
        FileNotFoundError: images, labels or a checkpoint are not there.
        CheckpointError: there are checkpoints to resume, and none is valid.
        CheckpointNotWrittenError: there is no space for a checkpoint.
        WorkDirError: `out` is not empty, and neither `resume` nor `overwrite` is given.
        TooFewImagesError: a part has no image, or too few for one batch.
        AnnotationError: a COCO file does not fit its images, lacks masks, or has other categories
            than the other.
        StateDictMismatch: `init` is not one complete ConvNeXt V2.
        ValueError: labels do not fit the images or, in a resumed run, the model; or an argument is
            outside what is allowed.
    """
    folder = Path(out)
    refuse_occupied_folder(folder, resume, overwrite)
    chosen = training_device(device)
    check_layout(Path(data), task)
    source = None if init is None else checkpoint_of(init)
    cfg = finetune_config(
        task,
        data,
        init=source,
        arch=arch,
        epochs=epochs,
        batch_size=batch_size,
        effective_batch=effective_batch,
        lr=lr,
        image_size=image_size,
        num_workers=choose_workers(num_workers),
        amp=choose_bf16(precision, chosen),
    )
    _refuse_other_classes(cfg, choose_start(folder, resume, overwrite).checkpoint, data)
    cfg = run_config(cfg, folder, chosen, tracker, cfg_options or {})
    return run(cfg, task, resume=resume, overwrite=overwrite)


def finetune_config(
    task: str,
    data: str | os.PathLike[str],
    *,
    init: Path | None,
    arch: str | None,
    epochs: int | None,
    batch_size: int | None,
    effective_batch: int | None,
    lr: float | None,
    image_size: int | None,
    num_workers: int,
    amp: bool,
) -> Config:
    """Fill in the recipe of a task for a labelled set.

    Args:
        task: as of `finetune`, like the others that are not named here.
        data: folder of images and labels.
        init: a local checkpoint.
        arch: a name of `mmconvnextv2.nn.ARCHITECTURES`.
        epochs: passes over the training images.
        batch_size: images of one forward pass.
        effective_batch: images behind one optimizer step.
        lr: learning rate of a step.
        image_size: longest side of the images in pixels.
        num_workers: processes that read images.
        amp: compute in bfloat16.

    Raises:
        As `finetune`.
    """
    for name, value in (("epochs", epochs), ("image_size", image_size)):
        if value is not None:
            check_count(name, value)
    if lr is not None and not 0 < lr < float("inf"):
        raise ValueError(f"lr must be positive and finite, got {lr!r}")
    sizes = _choose_arch(arch, init)
    settings = FineTuning(
        data=Path(data),
        task=task,
        arch=sizes,
        image_size=_usual_size(task, Path(data)) if image_size is None else image_size,
        num_workers=num_workers,
    )
    cfg = with_weights(fine_tuning_config(settings), init, "mean")
    num_images = count_images(cfg.train_dataloader.dataset.dataset)
    if num_images == 0:
        raise TooFewImagesError(f"no image to train on in {data}")
    width = (ARCHITECTURES[sizes] if isinstance(sizes, str) else sizes)["channels"][-1]
    if width >= WIDE_FROM:
        _widen(cfg, task)
    epochs = epochs_for(FINE_TUNING_EPOCHS, num_images) if epochs is None else epochs
    recipe_batch = cfg.train_dataloader.batch_size
    batch_size = min(recipe_batch, num_images) if batch_size is None else batch_size
    _fill_batch(cfg, task, num_images, batch_size, amp)
    accumulate = accumulated_batches(batch_size, effective_batch)
    optimizer = cfg.optim_wrapper.optimizer
    step_batch = batch_size * accumulate
    recipe_width = ARCHITECTURES["atto"]["channels"][-1]
    # AdamW moves every weight by as much as the rate, so in wide layers the sums move further.
    scale = step_batch / recipe_batch * min(1.0, recipe_width / width)
    optimizer.lr = optimizer.lr * scale if lr is None else lr
    cfg.optim_wrapper.accumulative_counts = accumulate
    cfg.auto_scale_lr.base_batch_size = step_batch
    _fill_schedule(cfg, epochs, num_images // batch_size)
    return cfg


def _choose_arch(arch: str | None, init: Path | None) -> Arch:
    if arch is not None and arch not in ARCHITECTURES:
        raise ValueError(f"unknown arch {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    if init is None:
        return arch or DEFAULT_ARCH
    source = convert_state_dict(read_checkpoint(init))
    if arch not in (None, source.arch):
        raise ValueError(f"arch={arch!r} was asked for, and init={init} is of {source.arch!r}")
    if source.arch != "custom":
        return source.arch
    return dict(depths=source.depths, channels=source.channels)


def _usual_size(task: str, data: Path) -> int:
    """The median longest side of the training images, up to a multiple of 32, and to the bound."""
    sides = []
    for path in pick_images(data / _TRAINING_IMAGES[task], _SIZES_LOOKED_AT):
        try:
            with Image.open(path) as image:
                sides.append(max(image.size))
        except OSError:
            continue  # what cannot be read is named when the run reads it
    largest = LARGEST_SIZE[task]
    return min(max(64, 32 * math.ceil(np.median(sides or [largest]) / 32)), largest)


def _widen(cfg: Config, task: str) -> None:
    """Give the heads of detection and segmentation their usual width."""
    width = 256
    if task == "segmentation":
        cfg.model.decode_head.channels = width
    if task != "detection":
        return
    model, roi = cfg.model, cfg.model.roi_head
    model.neck.out_channels = width
    model.rpn_head.update(in_channels=width, feat_channels=width)
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor):
        extractor.out_channels = width
    roi.bbox_head.update(in_channels=width, fc_out_channels=1024)
    roi.mask_head.update(in_channels=width, conv_out_channels=width)


def _fill_batch(cfg: Config, task: str, num_images: int, batch_size: int, amp: bool) -> None:
    check_count("batch_size", batch_size)
    if num_images < batch_size:
        raise TooFewImagesError(
            f"{num_images} training images do not fill one batch of {batch_size}: lower batch_size "
            f"(--batch-size) to {num_images} or less, or add images"
        )
    if task == "segmentation" and batch_size < 2:
        raise ValueError(
            "segmentation needs a batch_size of 2 or more, for UperNet's batch norm, got "
            f"{batch_size}"
        )
    loader = cfg.train_dataloader
    loader.batch_size = batch_size
    loader.drop_last = True  # batch norm cannot learn from a last batch of one image
    loader.sampler = dict(type="StatelessSampler", shuffle=True)
    cfg.optim_wrapper.type = "AutocastOptimWrapper" if amp else "OptimWrapper"


def _fill_schedule(cfg: Config, epochs: int, iterations_an_epoch: int) -> None:
    """The rate rises linearly, and falls as half a cosine to the end."""
    iterations = epochs * iterations_an_epoch
    warmup = min(LONGEST_WARMUP, iterations // 10)
    warm = dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=warmup)
    fall = dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=warmup, end=iterations)
    cfg.param_scheduler = [warm, fall] if warmup else [fall]
    interval = max(1, epochs // VALIDATIONS)
    cfg.train_cfg = dict(type="ResumableEpochLoop", max_epochs=epochs, val_interval=interval)
    cfg.log_processor = dict(by_epoch=True)
    hooks = cfg.default_hooks
    hooks.logger.log_metric_by_epoch = True
    hooks.checkpoint.update(by_epoch=True, interval=interval)
    log_often_enough(cfg, iterations)


def _refuse_other_classes(
    cfg: Config, checkpoint: Path | None, data: str | os.PathLike[str]
) -> None:
    """Refuse to resume a run that tells other classes apart than the labelled set has."""
    if checkpoint is None:
        return
    noted: Mapping[str, Any] = read_meta(checkpoint).get("dataset_meta") or {}
    before = tuple(noted.get("classes") or ())
    classes = tuple(cfg.val_dataloader.dataset.metainfo.classes)
    if before and before != classes:
        raise ValueError(
            f"{checkpoint} tells {len(before)} classes apart ({_few(before)}) and {data} has "
            f"{len(classes)} ({_few(classes)}): resume with the same labelled set, or begin a run "
            f"in another folder with init={checkpoint}"
        )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
