"""The zoo: every config of this project and every published ConvNeXt V2 weight, by name.

The names come from ``model-index.yml``, which mim reads too. mmpretrain's own functions know them
after `register_models`. mmengine resolves ``package::config`` paths, and its Inferencers names, for
a fixed list of packages alone: give these the path from `find_model`.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import print_log

from mmconvnextv2.apis.configs import INDEX, resource_root
from mmconvnextv2.checkpoint import (
    backbone_state_dict,
    fetch_checkpoint,
    load_strictly,
    read_checkpoint,
    to_our_names,
)
from mmconvnextv2.checkpoint.loading import OUTPUT_NORM

MMPRETRAIN_TASKS = ("convnextv2", "fcmae")
"""Folders of configs whose models mmpretrain builds."""


@dataclass(frozen=True)
class ZooModel:
    """One entry of the zoo.

    Attributes:
        name: unique in the zoo.
        config: file that builds the model.
        weights: URL of published weights; None for a recipe without.
        license: of the weights; of the recipe where there are none.
        parameters: number of parameters of the config's model.
        flops: multiply-accumulates of one image's forward pass at `input_size`.
        input_size: height x width in pixels.
        metrics: what the weights reach, by dataset and metric; empty without weights.
    """

    name: str
    config: Path
    weights: str | None
    license: str
    parameters: int
    flops: int
    input_size: str
    metrics: dict[str, dict[str, float]]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the zoo, sorted.

    Args:
        pattern: shell pattern for the whole name, such as ``*tiny*3rdparty*``.
    """
    return sorted(fnmatch.filter(_entries(), pattern))


def find_model(name: str) -> ZooModel:
    """Look up one name.

    Raises:
        ValueError: the zoo has no such name; the message has similar ones.
    """
    entries = _entries()
    if name not in entries:
        similar = difflib.get_close_matches(name, entries, n=3, cutoff=0.3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "see list_models()"
        raise ValueError(f"the zoo has no model {name!r}: {hint}")
    entry = entries[name]
    metadata = entry["Metadata"]
    metrics: dict[str, dict[str, float]] = {}
    for result in entry["Results"] or []:
        metrics.setdefault(result["Dataset"], {}).update(result["Metrics"])
    return ZooModel(
        name=name,
        config=resource_root() / entry["Config"],
        weights=entry.get("Weights"),
        license=metadata["License"],
        parameters=metadata["Parameters"],
        flops=metadata["FLOPs"],
        input_size=metadata["Input Size"],
        metrics=metrics,
    )


def get_config(name: str) -> Config:
    """Read the config of a model by its name.

    Raises:
        ValueError: the zoo has no such name.
    """
    return Config.fromfile(find_model(name).config)


def get_model(name: str, pretrained: bool | str | os.PathLike[str] = False) -> Any:
    """Build the model of any task by its name, in evaluation mode.

    Args:
        name: of the zoo.
        pretrained: True for the weights that the zoo names, downloaded once and compared with the
            hash in their name; a path, URL or hub id for others; False leaves the model as
            initialised.

    Returns:
        What the config builds: an mmpretrain classifier, `FCMAE`, a model of mmdet or mmseg. The
        weights of an encoder alone, such as those published after FCMAE, fill the backbone: norm
        and head then are as initialised, and the log says so.

    Raises:
        ValueError: the zoo has no such name or no weights for it, or a file cannot be read safely.
        StateDictMismatch: the weights are not those of the model.
    """
    # It takes longer to import than all the rest, and names alone do not need it.
    from mmconvnextv2.analysis.complexity import build_model

    entry = find_model(name)
    weights = entry.weights if pretrained is True else pretrained or None
    if pretrained and weights is None:
        raise ValueError(f"{name} is a recipe, nobody has published weights of it: give a file")
    model = build_model(Config.fromfile(entry.config))
    if weights is None:
        return model
    tensors = to_our_names(read_checkpoint(fetch_checkpoint(weights)))
    if all(key.startswith("backbone.") for key in tensors):
        encoder = backbone_state_dict(tensors)
        summary = load_strictly(model.backbone, encoder, OUTPUT_NORM, "backbone tensors")
    else:
        summary = load_strictly(model, tensors)
    print_log(f"{name}: {summary}", logger="current")
    return model


def register_models() -> None:
    """Tell mmpretrain the names of its tasks: pre-training and classification.

    After it mmpretrain's `list_models`, `get_model`, `FeatureExtractor` and Inferencers take them.
    Calling it again changes nothing.
    """
    from mmpretrain.apis import ModelHub

    root = resource_root()
    for task in MMPRETRAIN_TASKS:
        metafile = root / "configs" / task / "metafile.yml"
        if not ModelHub.has(load(metafile)["Models"][0]["Name"]):
            ModelHub.register_model_index(metafile, config_prefix=root)


def _entries() -> dict[str, dict[str, Any]]:
    root = resource_root()
    metafiles = [load(root / path) for path in load(root / INDEX)["Import"]]
    return {entry["Name"]: entry for metafile in metafiles for entry in metafile["Models"]}
