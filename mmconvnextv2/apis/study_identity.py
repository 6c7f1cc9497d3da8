"""What a result depends on, as text that is the same in the next process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmengine.config import Config

import mmconvnextv2
from mmconvnextv2.checkpoint import sha256_of

NEUTRAL_KEYS = frozenset(
    {"experiment_name", "num_workers", "persistent_workers", "pin_memory", "resume", "work_dir"}
)
"""Settings on which no result depends."""

WITHOUT_EFFECT = (
    "apis/schedules.py",
    "apis/study_curves.py",
    "apis/study_definition.py",
    "apis/study_report.py",
    "benchmark/",
    "deployment/",
    "visualization/comparison.py",
    "visualization/feature_diversity.py",
    "visualization/study.py",
)
"""Sources that show results, or make configs, whose settings count by themselves."""

CODE_DISTRIBUTIONS = (
    "torch",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmpretrain",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
    "mmengine",
    "mmcv",
    "mmpretrain",
    "mmdet",
    "mmsegmentation",
)
"""Packages whose version counts as code; of OpenMMLab's two sets one is installed."""


READ_IN_FOLDERS = (".csv", ".json", ".txt")
"""Suffixes of annotations, which an edit may leave at the same size."""


def code_identity() -> dict[str, str]:
    """What the code of a run is: a hash of this package's sources, and versions of what it uses."""
    package = Path(mmconvnextv2.__file__).parent
    content = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".cpp")):
        name = path.relative_to(package).as_posix()
        if not name.startswith(WITHOUT_EFFECT):
            content.update(f"{name}\0".encode())
            content.update(path.read_bytes() + b"\0")
    versions = {"mmconvnextv2": content.hexdigest()}
    for name in CODE_DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def identity_of(path: str | os.PathLike[str]) -> str:
    """A hash of a file's content, or of a folder: annotations by content, images by name and size.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(path)
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [
        f"{file.relative_to(path).as_posix()} "
        f"{sha256_of(file) if file.suffix in READ_IN_FOLDERS else file.stat().st_size}"
        for file in files
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def config_identity(cfg: Config) -> dict[str, str]:
    """All settings of a config that may have an effect, as text by their dotted keys."""
    return {f"config {key}": value for key, value in _leaves(cfg.to_dict())}


def digest(identity: Mapping[str, str]) -> str:
    """One hash of a whole identity, for what is made from the result."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of nested dictionaries and lists, without those of no effect."""
    if isinstance(node, Mapping) and node:
        children = [(str(k), v) for k, v in node.items() if k not in NEUTRAL_KEYS]
    elif isinstance(node, list | tuple) and any(isinstance(v, Mapping) for v in node):
        children = [(str(i), v) for i, v in enumerate(node)]
    else:
        yield prefix, _text(node)
        return
    for key, value in children:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else key)


def _text(value: Any) -> str:
    """A value as text that is the same in the next process: no addresses, no order of sets."""
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return json.dumps(value, default=repr)
