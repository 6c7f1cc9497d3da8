"""The checkpoint of a run and the config that goes with it, found from one path."""

from __future__ import annotations

import copy
import importlib
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmconvnextv2.models  # noqa: F401  registers what a stored config names
from mmconvnextv2.checkpoint import fetch_checkpoint, read_checkpoint
from mmconvnextv2.checkpoint.stored_config import read_settings
from mmconvnextv2.checkpoint.validity import newest_valid_checkpoint

CONFIG_FILE = "config.py"
"""Name of a run's config, in its folder."""


def checkpoint_of(location: str | os.PathLike[str]) -> Path:
    """Find the checkpoint that is meant.

    Args:
        location: a file, URL or hub id (docs/checkpoints.md), or the folder of a run, whose newest
            valid checkpoint is taken.

    Raises:
        FileNotFoundError: there is no such file, or the folder has no checkpoint.
        CheckpointError: the folder has some, and none is valid.
        ValueError: a URL or hub id is malformed, or a download is not the file that was meant.
        OSError: the download failed.
    """
    folder = Path(location)
    if not folder.is_dir():
        return fetch_checkpoint(location)
    newest = newest_valid_checkpoint(folder)
    if newest is None:
        raise FileNotFoundError(
            f"the folder {folder} has no checkpoint (epoch_*.pth or iter_*.pth): give the folder "
            "of a run that has saved one, or a checkpoint file"
        )
    return newest


def config_of(checkpoint: str | os.PathLike[str]) -> Config:
    """The config of the run that a checkpoint is from.

    It is ``config.py`` beside the checkpoint, where `pretrain` and `finetune` write it, or else the
    one that mmengine stores in the checkpoint, which is read as data: nothing in it is run, and of
    the modules that it wants imported those of this package are.

    Args:
        checkpoint: what `checkpoint_of` takes.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it has no config, as published weights have none, or one that is more than
            plain values.
    """
    file = checkpoint_of(checkpoint)
    beside = file.with_name(CONFIG_FILE)
    if beside.is_file():
        return Config.fromfile(beside)
    text = read_meta(file).get("cfg")
    if not text:
        raise ValueError(
            f"{checkpoint} names no config: there is no {CONFIG_FILE} beside it and none in it, as "
            "in published weights; give the config of its run (--config)"
        )
    settings = read_settings(text)
    for module in (settings.get("custom_imports") or {}).get("imports", ()):
        if module.startswith("mmconvnextv2."):
            importlib.import_module(module)
    return Config(settings)


def load_config(config: str | os.PathLike[str] | Config) -> Config:
    """Read a config file; a loaded config stays as it is.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return config if isinstance(config, Config) else Config.fromfile(config)


def task_of(cfg: Config) -> str:
    """Tell what a config trains: "pretraining", "classification", "detection" or "segmentation".

    Raises:
        ValueError: it does not tell.
    """
    scope, kind = cfg.get("default_scope"), str(cfg.get("model", {}).get("type", "nothing"))
    if scope == "mmdet":
        return "detection"
    if scope == "mmseg":
        return "segmentation"
    if scope == "mmpretrain":
        return "classification" if kind.endswith("Classifier") else "pretraining"
    raise ValueError(
        f"a config of mmpretrain, mmdet or mmseg is needed, and this one has the default_scope "
        f"{scope!r} and the model {kind}"
    )


def build_model(cfg: Config) -> Any:
    """Build the model of a config of any task; no weights are loaded."""
    settings = copy.deepcopy(cfg.model)  # building takes it apart
    # The Runner, too, takes the preprocessor from the top level of a config.
    if "data_preprocessor" in cfg:
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmpretrain"):
        return MODELS.build(settings)


def read_meta(file: Path) -> dict[str, Any]:
    """What a checkpoint says about itself; empty where it says nothing. Nothing of it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or cannot be read safely.
    """
    if file.suffix == ".safetensors":
        return {}
    read_checkpoint(file)  # says in one sentence what is wrong with it
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    meta = content.get("meta") if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) else {}
