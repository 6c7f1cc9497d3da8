"""Continue FCMAE from published weights on a folder of images in one call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmconvnextv2.apis.cfg_options import apply_options
from mmconvnextv2.apis.continue_config import (
    choose_settings,
    continue_config,
    look_at_images,
    read_as_rasters,
    start_from,
)
from mmconvnextv2.apis.launch import last_checkpoint, train
from mmconvnextv2.apis.run_folder import Resume, refuse_earlier_run
from mmconvnextv2.checkpoint import convert_state_dict, fetch_checkpoint, read_checkpoint
from mmconvnextv2.checkpoint.validity import read_progress, run_checkpoints
from mmconvnextv2.datasets.normalization import Normalization, measure_normalization
from mmconvnextv2.datasets.split_image_folder import GroupBy
from mmconvnextv2.nn.missing import Missing

NORMALIZATION_FILE = "normalization.json"


def continue_pretraining(
    data: str | os.PathLike[str],
    init: str | os.PathLike[str],
    work_dir: str | os.PathLike[str] = "work_dirs/continue",
    *,
    in_channels: int | None = None,
    normalization: str | os.PathLike[str] | Normalization | None = None,
    missing: Missing = "refuse",
    no_data: float | None = None,
    inflate_stem: str = "mean",
    image_size: int = 224,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    base_lr: float | None = None,
    encoder_rate: float | None = None,
    mask_ratio: float | None = None,
    held_out_share: float | None = None,
    group_by: GroupBy = "file",
    early_stop: int | None = None,
    num_workers: int = 8,
    amp: bool = False,
    resume: Resume = False,
    overwrite: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> Path:
    """Continue the pre-training of a ConvNeXt V2 on a folder of images, without labels.

    A part of the images is held out; the loss on them, with fixed masks, is logged and drawn. An
    encoder without a decoder, as all published ones are, gets a fresh decoder, which learns alone
    at first. What is None is taken from `mmconvnextv2.apis.settings` for the number of images.

    8-bit pictures are read as RGB and normalised as ImageNet. All else is read at its own depth by
    `LoadRaster` and normalised with figures that are measured from the images to train on, unless
    they are given; the config in each checkpoint holds them.

    Args:
        data: folder of images, nested or flat.
        init: checkpoint of any publisher: a path, URL or hub id (docs/checkpoints.md). It decides
            the architecture.
        work_dir: folder for checkpoints, logs and pictures.
        in_channels: channels of every image, 1 to 16; recognised from the files when None.
        normalization: what `tools/dataset_converters/measure_normalization.py` wrote, or
            `measure_normalization` returned; measured when None. Either way ``normalization.json``
            in `work_dir` has it, for fine-tuning.
        missing: "refuse" stops at missing values (NaN, no-data), "ignore" leaves them out of the
            loss.
        no_data: the number that stands for a missing value.
        inflate_stem: "mean" or "sum", for other channels than the checkpoint's; see
            `mmconvnextv2.checkpoint.inflation`.
        image_size: side of the training crops in pixels, a multiple of 32.
        epochs: passes over the images.
        batch_size: images of one forward pass.
        accumulate: forward passes of one optimizer step.
        base_lr: learning rate of the decoder for 256 images a step; it is scaled linearly to
            ``batch_size * accumulate``.
        encoder_rate: factor of that rate for the encoder.
        mask_ratio: share of cells to remove.
        held_out_share: share of the images to hold out.
        group_by: "file" draws the held-out images one by one, "folder" holds out whole folders:
            right where the files of a folder are alike, as slices of a volume or frames are.
        early_stop: end after so many validations, of about 20, without a lower held-out loss;
            None never does.
        num_workers: processes that read images.
        amp: compute in bfloat16.
        resume: True goes on from the newest valid checkpoint in `work_dir`, or starts if there is
            none yet; a path names the checkpoint. Give the same arguments again. To go on behind
            the end of a run, name its last checkpoint as `init` of a new one.
        overwrite: replace a run in `work_dir`.
        cfg_options: further settings of the config, as ``{"a.b": value}``.

    Returns:
        The last checkpoint, or with `early_stop` that of the lowest held-out loss. It holds encoder
        and decoder.

    Raises:
        FileNotFoundError: the folder, or a checkpoint, is not there.
        CheckpointError: there are checkpoints to resume, and none is valid.
        WorkDirError: `work_dir` holds a run, and neither `resume` nor `overwrite` is given.
        TooFewImagesError: the folder has no image, or too few for two parts.
        BadImagesError: the images differ in their channels, or too many cannot be read.
        StateDictMismatch: the checkpoint is not one complete ConvNeXt V2.
        ValueError: an argument is outside what is allowed.
    """
    refuse_earlier_run(work_dir, resume, overwrite)
    cfg = continued_run_config(
        data,
        init,
        Path(work_dir),
        in_channels=in_channels,
        normalization=normalization,
        missing=missing,
        no_data=no_data,
        inflate_stem=inflate_stem,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        base_lr=base_lr,
        encoder_rate=encoder_rate,
        mask_ratio=mask_ratio,
        held_out_share=held_out_share,
        group_by=group_by,
        early_stop=early_stop,
        num_workers=num_workers,
        amp=amp,
        resume=resume,
    )
    apply_options(cfg, cfg_options or {})
    cfg.work_dir = str(work_dir)
    runner = train(cfg, resume=resume, overwrite=overwrite)
    if early_stop is not None:
        return _best_checkpoint(runner)
    return last_checkpoint(runner)


def continued_run_config(
    data: str | os.PathLike[str],
    init: str | os.PathLike[str],
    folder: Path,
    *,
    in_channels: int | None = None,
    normalization: str | os.PathLike[str] | Normalization | None = None,
    missing: Missing = "refuse",
    no_data: float | None = None,
    inflate_stem: str = "mean",
    image_size: int = 224,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    base_lr: float | None = None,
    encoder_rate: float | None = None,
    mask_ratio: float | None = None,
    held_out_share: float | None = None,
    group_by: GroupBy = "file",
    early_stop: int | None = None,
    num_workers: int = 8,
    amp: bool = False,
    resume: Resume = False,
) -> Config:
    """Look at images and weights, fill in the config, and write what the run starts from.

    Arguments and errors are those of `continue_pretraining`. `folder`, of the run, gets
    ``normalization.json`` and the initial weights where the run needs such files and has not begun.
    """
    begun = _folder_of_begun_run(folder, resume)
    source = convert_state_dict(read_checkpoint(fetch_checkpoint(os.fspath(init))))
    images = look_at_images(data, in_channels)
    settings, num_train = choose_settings(
        data,
        images,
        group_by,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        base_lr=base_lr,
        encoder_rate=encoder_rate,
        mask_ratio=mask_ratio,
        held_out_share=held_out_share,
    )
    cfg = continue_config(
        data,
        source,
        settings,
        num_train,
        group_by=group_by,
        image_size=image_size,
        early_stop=early_stop,
        num_workers=num_workers,
        amp=amp,
    )
    folder.mkdir(parents=True, exist_ok=True)
    treats_missing = missing != "refuse" or no_data is not None
    if images.raster or normalization is not None or treats_missing:
        if normalization is None and begun is not None:
            normalization = begun / NORMALIZATION_FILE
        if normalization is None:
            paths = images.training_paths(data, settings.held_out_share, group_by)
            figures = measure_normalization(paths, missing=missing, no_data=no_data, progress=True)
        elif isinstance(normalization, Normalization):
            figures = normalization
        else:
            figures = Normalization.load(normalization)
        read_as_rasters(cfg, figures, images.channels, missing, no_data)
        figures.save(folder / NORMALIZATION_FILE)
    weights = folder if begun is None else begun
    start_from(cfg, source, os.fspath(init), inflate_stem, weights, write=begun is None)
    return cfg


def _folder_of_begun_run(work_dir: Path, resume: Resume) -> Path | None:
    """Where the run to be resumed has its files; None for one that has yet to begin."""
    if not isinstance(resume, bool):
        read_progress(resume)  # says at once what is wrong with it
        return Path(resume).parent
    return work_dir if resume and run_checkpoints(work_dir) else None


def _best_checkpoint(runner: Runner) -> Path:
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    return Path(hook.best_ckpt_path)
