"""FCMAE on a folder of images in one call: a config filled in, and mmengine's Runner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.continue_pretraining import continued_run_config
from mmconvnextv2.apis.filling import (
    check_crop_size,
    fill_loader,
    fill_optimization,
    log_often_enough,
)
from mmconvnextv2.apis.machine import choose_bf16, choose_workers
from mmconvnextv2.apis.results import RunResult
from mmconvnextv2.apis.run_config import checkpoint_of
from mmconvnextv2.apis.run_folder import Resume, refuse_occupied_folder
from mmconvnextv2.apis.settings import PRETRAINING_EPOCHS, base_lr_for, epochs_for
from mmconvnextv2.apis.whole_run import (
    accumulated_batches,
    run,
    run_config,
    training_device,
)
from mmconvnextv2.checkpoint import convert_state_dict, read_checkpoint
from mmconvnextv2.datasets.image_scan import TooFewImagesError, resolve_folder, scan_folder
from mmconvnextv2.datasets.shard_index import Shards, is_sharded
from mmconvnextv2.nn import ARCHITECTURES

FOLDER_CONFIG = "fcmae/fcmae_convnextv2-tiny_1xb64-coslr-400e_folder.py"
DEFAULT_ARCH = "tiny"
MASK_RATIO = 0.6
"""The paper's."""


def pretrain(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str] = "work_dirs/pretrain",
    *,
    arch: str = DEFAULT_ARCH,
    init: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch_size: int = 64,
    effective_batch: int | None = None,
    base_lr: float | None = None,
    image_size: int = 224,
    mask_ratio: float = MASK_RATIO,
    num_workers: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    tracker: str | None = None,
    resume: Resume = False,
    overwrite: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> RunResult:
    """Pre-train a ConvNeXt V2 on a folder of images, without labels.

    With `init` this is `mmconvnextv2.continue_pretraining`, which has further arguments: a share of
    the images is held out, and rates, epochs and accumulated batches that are not given follow
    `mmconvnextv2.apis.settings.SETTINGS`.

    Args:
        data: folder of images, nested or flat; without `init` also one of tar shards that
            `pack_shards.py` has packed or indexed.
        out: folder for checkpoints, logs and pictures.
        arch: a name of `mmconvnextv2.nn.ARCHITECTURES`; with `init` that of the weights.
        init: weights to start from: a checkpoint file, the folder of a run, a URL or a hub id, of
            our own or published ones (docs/checkpoints.md); random when None.
        epochs: passes over the images; by their number when None, see
            `mmconvnextv2.apis.settings.PRETRAINING_EPOCHS`.
        batch_size: images of one forward pass.
        effective_batch: images behind one optimizer step, a multiple of `batch_size`, to which
            forward passes are accumulated; `batch_size` when None.
        base_lr: learning rate for 256 images a step, scaled linearly to `effective_batch`; that of
            `mmconvnextv2.apis.settings.base_lr_for` when None: the paper's 1.5e-4 for 4,096 images
            a step, and 1.2e-3 for 64.
        image_size: side of the training crops in pixels, a multiple of 32.
        mask_ratio: share of the 32 x 32 pixel cells that is removed, inside (0, 1).
        num_workers: processes that read images; one a core and at most eight when None.
        precision: "auto" for bfloat16 where a GPU computes it, else float32; "bf16" or "fp32".
        device: "auto" for a GPU where there is one, "cpu" or "cuda".
        tracker: "wandb" or "mlflow", beside TensorBoard, which is always on.
        resume: True goes on from the newest valid checkpoint in `out`, or starts if there is none
            yet; a path names the checkpoint. Give the same arguments again.
        overwrite: replace a run in `out`.
        cfg_options: further settings of the config, as ``{"a.b": value}``.

    Returns:
        Paths and figures. The checkpoint holds encoder and decoder.

    Raises:
        FileNotFoundError: the folder, or a checkpoint, is not there.
        CheckpointError: there are checkpoints to resume, and none is valid.
        CheckpointNotWrittenError: there is no space for a checkpoint.
        WorkDirError: `out` is not empty, and neither `resume` nor `overwrite` is given.
        TooFewImagesError: the folder has no image, or too few for one batch.
        BadImagesError: too many images cannot be read, or they differ in their channels.
        ShardError: shards are missing or have changed.
        StateDictMismatch: `init` is not one complete ConvNeXt V2.
        ValueError: an argument is outside what is allowed.
    """
    folder = Path(out)
    refuse_occupied_folder(folder, resume, overwrite)
    chosen = training_device(device)
    accumulate = accumulated_batches(batch_size, effective_batch)
    workers, amp = choose_workers(num_workers), choose_bf16(precision, chosen)
    if init is None:
        num_images = count_images(data)
        if num_images < batch_size:
            raise TooFewImagesError(
                f"{num_images} images in {data} do not fill one batch of {batch_size}: lower "
                f"batch_size (--batch-size) to {num_images} or less, or add images"
            )
        cfg = pretrain_config(
            data,
            num_images,
            arch=arch,
            epochs=epochs_for(PRETRAINING_EPOCHS, num_images) if epochs is None else epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            base_lr=base_lr_for(batch_size * accumulate) if base_lr is None else base_lr,
            image_size=image_size,
            mask_ratio=mask_ratio,
            num_workers=workers,
            amp=amp,
        )
    else:
        start = checkpoint_of(init) if Path(init).is_dir() else init
        _refuse_other_arch(arch, start)
        cfg = continued_run_config(
            data,
            start,
            folder,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=None if effective_batch is None else accumulate,
            base_lr=base_lr,
            image_size=image_size,
            mask_ratio=mask_ratio,
            num_workers=workers,
            amp=amp,
            resume=resume,
        )
    cfg = run_config(cfg, folder, chosen, tracker, cfg_options or {})
    return run(cfg, "pretraining", resume=resume, overwrite=overwrite)


def _refuse_other_arch(arch: str, init: str | os.PathLike[str]) -> None:
    """Refuse weights of another architecture than was asked for; the default asks for none."""
    if arch == DEFAULT_ARCH:
        return
    found = convert_state_dict(read_checkpoint(checkpoint_of(init))).arch
    if arch != found:
        raise ValueError(f"arch={arch!r} was asked for, and init={init} is of {found!r}")


def count_images(data: str | os.PathLike[str]) -> int:
    """Count the images of a folder or of its shards.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        TooFewImagesError: there is no image in it.
        ShardError: shards are missing or have changed.
    """
    folder = resolve_folder(data)
    return len(Shards(folder)) if is_sharded(folder) else len(scan_folder(folder).images)


def pretrain_config(
    data: str | os.PathLike[str],
    num_images: int,
    *,
    arch: str,
    epochs: int,
    batch_size: int,
    accumulate: int,
    base_lr: float,
    image_size: int,
    mask_ratio: float,
    num_workers: int,
    amp: bool,
) -> Config:
    """Fill in the config for any folder.

    Args:
        data: as of `pretrain`, like the others that are not named here.
        num_images: how many there are.
        arch: a name of `mmconvnextv2.nn.ARCHITECTURES`.
        epochs: passes over the images. The rate rises in the first twentieth of them.
        batch_size: images of one forward pass.
        accumulate: forward passes of one optimizer step.
        base_lr: learning rate for 256 images a step.
        image_size: side of the crops in pixels.
        mask_ratio: share of cells to remove.
        num_workers: processes that read images.
        amp: compute in bfloat16.

    Raises:
        ValueError: an argument is outside what is allowed.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown arch {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    check_crop_size(image_size)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {mask_ratio}")

    cfg = Config.fromfile(config_path(FOLDER_CONFIG))
    cfg.model.data_preprocessor.mask_ratio = mask_ratio
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
    _fill_schedule(cfg, epochs)
    log_often_enough(cfg, epochs * (num_images // batch_size))
    return cfg


def _fill_schedule(cfg: Config, epochs: int) -> None:
    warmup, cosine = cfg.param_scheduler
    warmup.end = cosine.begin = max(1, epochs // 20)
    if warmup.end == epochs:
        cfg.param_scheduler = [warmup]
    cfg.train_cfg.max_epochs = epochs
    interval = max(1, min(20, epochs // 20))
    cfg.default_hooks.checkpoint.interval = interval
    (pictures,) = (hook for hook in cfg.custom_hooks if hook["type"] == "ReconstructionHook")
    pictures.interval = interval
