"""Read a checkpoint file without executing what it holds."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_REFUSED_CLASS = re.compile(r"GLOBAL (\S+) (?:was not|whose module)|unsupported class (\S+)", re.I)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state_dict of a checkpoint file: tensors and plain containers only.

    Besides these one class is read, ``argparse.Namespace``, in which the official training scripts
    store their options, and which holds nothing but its attributes.

    Args:
        path: a local .safetensors file, or one written by `torch.save` that holds a state_dict or
            one under the key ``state_dict`` (OpenMMLab) or ``model`` (official release).

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the file is .safetensors and that library is not installed.
        ValueError: the path is a URL, or the file is not a checkpoint, is damaged, or needs other
            classes, of which the message names the first.
    """
    if "://" in str(path):
        raise ValueError(
            f"{path} is not a local file: get it with mmconvnextv2.checkpoint.fetch_checkpoint"
        )
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"checkpoint {path} {what}")
    if file.stat().st_size == 0:
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: it has 0 bytes")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    if isinstance(content, Mapping):
        content = content.get("state_dict", content.get("model", content))
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(
            f"{path} holds no state_dict: neither its top level nor 'state_dict' nor "
            f"'model' maps names to tensors"
        )
    return dict(content)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{file} needs safetensors: pip install safetensors") from error
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read as a checkpoint of tensors: {error}") from error


def _read_pickle(file: Path) -> Any:
    try:
        with _namespace_allowed():
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes torch raise is not documented
        raise ValueError(
            f"{file} cannot be read as a checkpoint of tensors: {reason_text(error)}"
        ) from error


@contextmanager
def _namespace_allowed() -> Iterator[None]:
    """Allow `argparse.Namespace` in a safe load, and leave the process as it was.

    Torch 2.4 has no `torch.serialization.safe_globals`, which does the same.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def reason_text(error: Exception) -> str:
    """Say in one line why torch could not load a file, without its advice to load it unsafely."""
    message = str(error)
    if refused := _REFUSED_CLASS.search(message):
        name = refused.group(1) or refused.group(2)
        return (
            f"it needs {name}, which could run code and is not loaded; ask its author for a file "
            f"of tensors alone (.safetensors, or torch.save of the state_dict)"
        )
    # Torch's own text recommends the unsafe load, so a summary of ours takes its place.
    if "weights_only" in message or not message:
        return f"it is damaged or no checkpoint ({type(error).__name__})"
    return message.splitlines()[0]
