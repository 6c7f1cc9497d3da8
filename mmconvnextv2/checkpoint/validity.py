"""Which checkpoint of a work_dir a run can go on from, judged by content."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmconvnextv2.checkpoint.reading import reason_text

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"(epoch|iter)_(\d+)\.pth")
_POINTER = "last_checkpoint"
_NEEDED = ("meta", "state_dict", "message_hub", "optimizer")


class CheckpointError(ValueError):
    """A file that no run can go on from, or a folder that has no other."""


class Progress(NamedTuple):
    """How far a run was when it was saved: finished epochs and finished iterations."""

    epoch: int
    iteration: int


def check_checkpoint(path: str | os.PathLike[str]) -> Progress:
    """Check that a run can go on from a file, and that every byte of its tensors is as it was.

    `torch.save` writes a zip archive, which holds a checksum (CRC-32) of each record. Nothing that
    the file holds is executed.

    Args:
        path: a checkpoint of a training run.

    Returns:
        How far the run was.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or lacks something that a resumed run needs.
    """
    file = _existing(path)
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # what a damaged file makes zipfile raise is not documented
        raise CheckpointError(
            f"{file} is damaged: no complete archive as torch.save writes it "
            f"({file.stat().st_size:,} bytes; {error})"
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{file} is damaged: {damaged} does not match its checksum")
    return read_progress(file)


def read_progress(path: str | os.PathLike[str]) -> Progress:
    """Check that a file holds what a resumed run needs, without reading the numbers in its tensors.

    Args:
        path: a checkpoint of a training run.

    Returns:
        How far the run was.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file cannot be read safely, or lacks something.
    """
    file = _existing(path)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # as above
        raise CheckpointError(
            f"{file} cannot be read as a checkpoint of a run: {reason_text(error)}"
        ) from error
    missing = [key for key in _NEEDED if not isinstance(_entry(content, key), Mapping)]
    if missing:
        raise CheckpointError(
            f"{file} is no checkpoint of a run: it lacks {', '.join(missing)} (best_* and "
            "published files hold the weights alone)"
        )
    weights = content["state_dict"]
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"{file} is no checkpoint of a run: its state_dict is no set of tensors"
        )
    progress = Progress(content["meta"].get("epoch"), content["meta"].get("iter"))
    if not all(isinstance(count, int) and count >= 0 for count in progress):
        raise CheckpointError(
            f"{file} is no checkpoint of a run: its meta names epoch {progress.epoch!r} and "
            f"iteration {progress.iteration!r}"
        )
    return progress


def run_checkpoints(work_dir: str | os.PathLike[str]) -> list[Path]:
    """Files of a folder that have the name of a run's checkpoints, the highest numbers first."""
    files = [path for path in Path(work_dir).glob("*.pth") if _NAME.fullmatch(path.name)]
    return sorted(files, key=_number, reverse=True)


def newest_valid_checkpoint(
    work_dir: str | os.PathLike[str], log: Callable[[str], None] = _LOG.warning
) -> Path | None:
    """Find the checkpoint of most iterations that a run can go on from.

    Each file counts by what it holds (`check_checkpoint`); the pointer that mmengine writes,
    ``last_checkpoint``, is not needed.

    Args:
        work_dir: the run's folder.
        log: gets a line for each file that was newer and is not valid.

    Returns:
        The file; None where no run has saved.

    Raises:
        CheckpointError: a run has saved there, and it cannot go on from any file.
    """
    valid: dict[str, tuple[int, int, Path]] = {}
    rejected = []
    for path in run_checkpoints(work_dir):
        series = path.name.partition("_")[0]
        if series in valid:  # a higher number of the same kind is there
            continue
        try:
            valid[series] = (check_checkpoint(path).iteration, path.stat().st_mtime_ns, path)
        except (CheckpointError, OSError) as error:
            rejected.append(str(error))
            log(f"not resumed from: {error}")
    if valid:
        return max(valid.values())[-1]
    if not rejected and (Path(work_dir) / _POINTER).is_file():
        rejected = [f"{_POINTER} names one, and no epoch_*.pth or iter_*.pth is there"]
    if rejected:
        raise CheckpointError(
            f"{work_dir} holds a run, and no checkpoint that it could go on from: "
            f"{'; '.join(rejected)}. Name a file (--resume FILE), or start anew (--overwrite)"
        )
    return None


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"checkpoint {path} {what}")
    return file


def _entry(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, Mapping) else None


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match.group(2))
