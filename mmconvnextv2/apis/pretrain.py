"""FCMAE on a folder of images in one call: a config filled in, and mmengine's Runner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.filling import check_crop_size, fill_loader, fill_optimization
from mmconvnextv2.apis.launch import last_checkpoint, train
from mmconvnextv2.apis.run_folder import Resume, refuse_earlier_run
from mmconvnextv2.datasets.shard_index import is_sharded
from mmconvnextv2.nn import ARCHITECTURES

FOLDER_CONFIG = "fcmae/fcmae_convnextv2-tiny_1xb64-coslr-400e_folder.py"
BASE_LR = 1.5e-4
"""The paper's learning rate for 256 images a step (appendix A.2, table 8)."""


def pretrain(
    data: str | os.PathLike[str],
    work_dir: str | os.PathLike[str] = "work_dirs/pretrain",
    *,
    arch: str = "tiny",
    epochs: int = 400,
    warmup_epochs: int | None = None,
    batch_size: int = 64,
    accumulate: int = 1,
    base_lr: float = BASE_LR,
    image_size: int = 224,
    num_workers: int = 8,
    amp: bool = False,
    resume: Resume = False,
    overwrite: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> Path:
    """Pre-train a ConvNeXt V2 on a folder of images, without labels.

    Args:
        data: folder of images, nested or flat, or of tar shards that `pack_shards.py` has packed
            or indexed.
        work_dir: folder for checkpoints, logs and pictures.
        arch: a name of `mmconvnextv2.nn.ARCHITECTURES`.
        epochs: passes over the images.
        warmup_epochs: epochs in which the rate rises from 0; a twentieth of `epochs` when None.
        batch_size: images of one forward pass.
        accumulate: forward passes of one optimizer step.
        base_lr: learning rate for 256 images a step; it is scaled linearly to
            ``batch_size * accumulate``.
        image_size: side of the training crops in pixels, a multiple of 32.
        num_workers: processes that read images.
        amp: compute in bfloat16.
        resume: True goes on from the newest valid checkpoint in `work_dir`, or starts if there is
            none yet; a path names the checkpoint.
        overwrite: replace a run in `work_dir`.
        cfg_options: further settings of the config, as ``{"a.b": value}``.

    Returns:
        The last checkpoint; it holds encoder and decoder.

    Raises:
        FileNotFoundError: the folder, or the checkpoint to resume, is not there.
        CheckpointError: there are checkpoints to resume, and none is valid.
        WorkDirError: `work_dir` holds a run, and neither `resume` nor `overwrite` is given.
        TooFewImagesError: the folder has no image, or too few for one batch.
        BadImagesError: too many images cannot be read.
        ShardError: shards are missing or have changed.
        ValueError: an argument is outside what is allowed.
    """
    refuse_earlier_run(work_dir, resume, overwrite)
    cfg = pretrain_config(
        data,
        arch=arch,
        epochs=epochs,
        warmup_epochs=max(1, epochs // 20) if warmup_epochs is None else warmup_epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        base_lr=base_lr,
        image_size=image_size,
        num_workers=num_workers,
        amp=amp,
    )
    cfg.merge_from_dict(cfg_options or {})
    cfg.work_dir = str(work_dir)
    return last_checkpoint(train(cfg, resume=resume, overwrite=overwrite))


def pretrain_config(
    data: str | os.PathLike[str],
    *,
    arch: str,
    epochs: int,
    warmup_epochs: int,
    batch_size: int,
    accumulate: int,
    base_lr: float,
    image_size: int,
    num_workers: int,
    amp: bool,
) -> Config:
    """Fill in the config for any folder; the arguments are those of `pretrain`.

    Raises:
        ValueError: an argument is outside what is allowed.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown arch {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    check_crop_size(image_size)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= warmup_epochs <= epochs:
        raise ValueError(f"warmup_epochs must lie in 0 to {epochs} (epochs), got {warmup_epochs}")

    cfg = Config.fromfile(config_path(FOLDER_CONFIG))
    cfg.model.backbone.arch = arch
    cfg.model.neck.in_channels = ARCHITECTURES[arch]["channels"][-1]
    loader = cfg.train_dataloader
    fill_loader(loader, batch_size, num_workers)
    images = loader.dataset.dataset
    images.data_root = str(data)
    if is_sharded(data):
        images.type = "ShardedImages"
    (crop,) = (step for step in images.pipeline if step.type == "LoadRandomResizedCrop")
    crop.scale = image_size
    lr = base_lr * batch_size * accumulate / 256
    fill_optimization(cfg, lr=lr, batch_size=batch_size, accumulate=accumulate, amp=amp)
    warmup, cosine = cfg.param_scheduler
    warmup.end = cosine.begin = warmup_epochs
    if warmup_epochs == 0:
        cfg.param_scheduler = [cosine]
    elif warmup_epochs == epochs:
        cfg.param_scheduler = [warmup]
    cfg.train_cfg.max_epochs = epochs
    return cfg
