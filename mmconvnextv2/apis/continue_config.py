"""The config of continued pre-training, filled in for a folder of images and a checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.filling import (
    check_crop_size,
    fill_loader,
    fill_optimization,
    load_raster,
    log_often_enough,
)
from mmconvnextv2.apis.settings import (
    VALIDATIONS,
    ContinueSettings,
    settings_for,
    warmup_iterations,
)
from mmconvnextv2.checkpoint import Conversion, write_checkpoint
from mmconvnextv2.checkpoint.inflation import INFLATION_MODES, inflate_channels
from mmconvnextv2.datasets.image_folder import BadImagesError
from mmconvnextv2.datasets.image_reading import UnreadableImageError
from mmconvnextv2.datasets.image_scan import (
    TooFewImagesError,
    choose_headers,
    resolve_folder,
    scan_folder,
)
from mmconvnextv2.datasets.normalization import Normalization
from mmconvnextv2.datasets.raster_reading import (
    RASTER_SUFFIXES,
    is_picture,
    read_raster_header,
)
from mmconvnextv2.datasets.split_image_folder import GroupBy, is_held_out
from mmconvnextv2.nn.missing import Missing

CONTINUE_CONFIG = "fcmae/fcmae_convnextv2-tiny_1xb64-continue_folder.py"
INITIAL_WEIGHTS_FILE = "initial_weights.pth"


@dataclass(frozen=True)
class Images:
    """What a folder holds.

    Attributes:
        paths: all its image files.
        channels: of each image.
        raster: read them at their own depth with `LoadRaster`, not as 8-bit RGB.
    """

    paths: Sequence[str]
    channels: int
    raster: bool

    def training_paths(
        self, root: str | os.PathLike[str], held_out_share: float, group_by: GroupBy
    ) -> list[str]:
        """Files that `SplitImageFolder` does not hold out."""
        root = Path(root).expanduser()
        names = {path: Path(os.path.relpath(path, root)).as_posix() for path in self.paths}
        return [p for p, name in names.items() if not is_held_out(name, held_out_share, group_by)]


def look_at_images(data: str | os.PathLike[str], in_channels: int | None = None) -> Images:
    """Find out from the headers how to read a folder.

    8-bit pictures stand for themselves or, in grey, for colour: they are read as RGB. One file that
    is more than that makes all of them rasters, and so does a number of channels other than 3.

    Args:
        data: the folder.
        in_channels: channels of every image; recognised when None.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        TooFewImagesError: there is no image in it.
        BadImagesError: the images have different numbers of channels.
    """
    paths = scan_folder(resolve_folder(data), RASTER_SUFFIXES).images
    channels: Counter[int] = Counter()
    all_pictures = True
    for path in choose_headers(paths):
        try:
            header = read_raster_header(path)
        except UnreadableImageError:
            continue  # the data set counts and names them, and knows CMYK, which is no raster
        channels[header.channels] += 1
        all_pictures &= is_picture(path, header)
    if all_pictures and in_channels in (None, 3):
        return Images(paths, 3, raster=False)
    if in_channels is None:
        if len(channels) > 1:
            counts = ", ".join(f"{count:,} of {c}" for c, count in channels.most_common())
            raise BadImagesError(
                f"the images in {data} have different numbers of channels ({counts}): keep them "
                "in folders of their own"
            )
        (in_channels,) = channels
    return Images(paths, in_channels, raster=True)


def choose_settings(
    data: str | os.PathLike[str], images: Images, group_by: GroupBy = "file", **given: Any
) -> tuple[ContinueSettings, int]:
    """Take what suits the number of images, and what was given in its place.

    Args:
        data: the folder.
        images: what it holds.
        group_by: what is held out as a whole, see `SplitImageFolder`.
        **given: fields of `ContinueSettings`; None leaves the row's value.

    Returns:
        The settings, with a batch that the images fill, and the number of images to train on.

    Raises:
        TooFewImagesError: all images are held out, or none.
        ValueError: a given value is outside what is allowed.
    """
    row = settings_for(len(images.paths))
    settings = dataclasses.replace(row, **{k: v for k, v in given.items() if v is not None})
    for name in ("epochs", "batch_size", "accumulate"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}")
    for name in ("mask_ratio", "held_out_share"):
        if not 0 < getattr(settings, name) < 1:
            raise ValueError(
                f"{name} must lie strictly between 0 and 1, got {getattr(settings, name)}"
            )
    num_train = len(images.training_paths(data, settings.held_out_share, group_by))
    num_held_out = len(images.paths) - num_train
    if not num_train or not num_held_out:
        raise TooFewImagesError(
            f"held_out_share={settings.held_out_share:g} of the {len(images.paths)} images in "
            f"{data}, by {group_by}, leaves {num_train} to train on and {num_held_out} held out: "
            "choose another share, or add images"
        )
    if given.get("batch_size") is None:
        settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, num_train))
    return settings, num_train


def continue_config(
    data: str | os.PathLike[str],
    source: Conversion,
    settings: ContinueSettings,
    num_train: int,
    *,
    group_by: GroupBy = "file",
    image_size: int = 224,
    early_stop: int | None = None,
    num_workers: int = 8,
    amp: bool = False,
) -> Config:
    """Fill in the config for a folder of 8-bit pictures.

    Args:
        data: the folder.
        source: the checkpoint, which decides about architecture and decoder.
        settings: what `choose_settings` found.
        num_train: images to train on.
        group_by: what is held out as a whole, see `SplitImageFolder`.
        image_size: side of the crops in pixels.
        early_stop: validations without a lower held-out loss until the end; None for no such end.
        num_workers: processes that read images.
        amp: compute in bfloat16.

    Raises:
        ValueError: an argument is outside what is allowed.
    """
    check_crop_size(image_size)
    if early_stop is not None and early_stop < 1:
        raise ValueError(f"early_stop must be at least 1 validation, got {early_stop}")
    cfg = Config.fromfile(config_path(CONTINUE_CONFIG))
    cfg.model.data_preprocessor.mask_ratio = settings.mask_ratio
    cfg.model.backbone.arch = (
        source.arch
        if source.arch != "custom"
        else dict(depths=list(source.depths), channels=list(source.channels))
    )
    cfg.model.neck.update(_decoder(source))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        fill_loader(loader, settings.batch_size, num_workers)
        images = loader.dataset.dataset
        images.update(
            data_root=str(data), held_out_share=settings.held_out_share, group_by=group_by
        )
        images.pipeline[0].scale = image_size
    fill_optimization(
        cfg,
        lr=settings.lr,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        amp=amp,
    )
    cfg.optim_wrapper.paramwise_cfg.encoder_rate = settings.encoder_rate
    _fill_schedule(cfg, settings, num_train, _has_decoder(source))
    if early_stop is not None:
        cfg.custom_hooks.append(
            dict(
                type="ResumableEarlyStoppingHook",
                monitor="held_out_loss",
                rule="less",
                min_delta=0.001,
                patience=early_stop,
                strict=True,
            )
        )
    return cfg


def _has_decoder(source: Conversion) -> bool:
    return any(name.startswith("neck.") for name in source.state_dict)


def _decoder(source: Conversion) -> dict[str, int]:
    """Sizes of the decoder: those of the checkpoint's, or the paper's."""
    sizes = dict(in_channels=source.channels[-1])
    if _has_decoder(source):
        blocks = {key.split(".")[2] for key in source.state_dict if key.startswith("neck.blocks.")}
        sizes["num_channels"] = len(source.state_dict["neck.mask_token"])
        sizes["depth"] = len(blocks)
    return sizes


def _fill_schedule(
    cfg: Config, settings: ContinueSettings, num_train: int, has_decoder: bool
) -> None:
    epochs = settings.epochs
    iterations = num_train // settings.batch_size
    log_often_enough(cfg, epochs * iterations)
    warmup = warmup_iterations(epochs, iterations, settings.accumulate)
    decoder_warmup = 0 if has_decoder else warmup
    alone, both, cosine = cfg.param_scheduler
    alone.end = both.begin = decoder_warmup
    both.end = cosine.begin = decoder_warmup + warmup
    cfg.param_scheduler = [s for s in (alone, both) if s.end > s.begin] + [cosine]
    interval = max(1, epochs // VALIDATIONS)
    cfg.train_cfg.update(max_epochs=epochs, val_interval=interval)
    cfg.default_hooks.checkpoint.interval = interval
    hooks = {hook["type"]: hook for hook in cfg.custom_hooks}
    hooks["DecoderWarmupHook"].num_iters = decoder_warmup
    hooks["PlanHook"].warmup = decoder_warmup + 20
    hooks["ReconstructionHook"].interval = interval


def read_as_rasters(
    cfg: Config,
    normalization: Normalization,
    channels: int,
    missing: Missing = "refuse",
    no_data: float | None = None,
) -> None:
    """Let a config read images at their own depth, in place.

    Args:
        cfg: what `continue_config` returned.
        normalization: what was measured from the images.
        channels: of each image.
        missing: see `LoadRaster`.
        no_data: see `LoadRaster`.

    Raises:
        ValueError: the figures are of another number of channels.
    """
    if len(normalization.mean) != channels:
        raise ValueError(
            f"the images have {channels} channels, the normalization has {len(normalization.mean)}"
        )
    cfg.model.backbone.in_channels = cfg.model.neck.image_channels = channels
    cfg.model.data_preprocessor.update(
        mean=normalization.mean,
        std=normalization.std,
        clip=(normalization.low, normalization.high),
        to_rgb=False,  # LoadRaster keeps the file's order
        missing=missing,
    )
    cfg.model.head.missing = missing
    load = load_raster(normalization, missing, no_data)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        images = loader.dataset.dataset
        crop, *rest = images.pipeline
        images.pipeline = [load, dict(crop, type="RasterRandomResizedCrop"), *rest]


def start_from(
    cfg: Config,
    source: Conversion,
    location: str,
    inflate_stem: str,
    folder: Path,
    *,
    write: bool = True,
) -> None:
    """Let a config begin with a checkpoint, in place.

    An encoder alone is named in its ``init_cfg``. Encoder and decoder are written to a file of
    their own first, with the channels that the config asks for, and loaded as a whole.

    Args:
        cfg: what `continue_config` returned.
        source: the checkpoint.
        location: where it came from.
        inflate_stem: how to get other channels than the checkpoint's.
        folder: where that file is.
        write: whether to write it; a run that is resumed has it already.

    Raises:
        ValueError: the mode of inflation is unknown.
    """
    if inflate_stem not in INFLATION_MODES:
        raise ValueError(
            f"inflate_stem must be one of {', '.join(INFLATION_MODES)}, got {inflate_stem!r}"
        )
    backbone = cfg.model.backbone
    if not _has_decoder(source):
        backbone.init_cfg = dict(type="Pretrained", checkpoint=location, inflate_stem=inflate_stem)
        return
    backbone.init_cfg = None
    path = folder / INITIAL_WEIGHTS_FILE
    cfg.load_from = str(path)
    if not write:
        return
    parts = {
        key: tensor
        for key, tensor in source.state_dict.items()
        if key.startswith(("backbone.downsample_layers.", "backbone.stages.", "neck."))
    }
    write_checkpoint(
        path,
        inflate_channels(parts, backbone.in_channels, inflate_stem),
        meta=dict(source=location),
    )
