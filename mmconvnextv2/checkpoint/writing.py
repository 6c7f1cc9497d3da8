"""Write a checkpoint whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmconvnextv2.files import replace_when_complete


def write_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    key: str | None = "state_dict",
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors to a file that a safe load reads in any process.

    Args:
        path: .safetensors in that format, anything else by `torch.save`. A file that is there is
            replaced.
        state_dict: tensors by name.
        key: entry of the file that holds them, None for none; .safetensors has no entries.
        meta: what to store beside the tensors, plain values only; in .safetensors as text. Without
            a `key` it is left out of files of `torch.save`, where it would look like a tensor.

    Raises:
        FileNotFoundError: the folder does not exist.
        ImportError: .safetensors is asked for and not installed.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: folder {target.parent} does not exist")
    if target.suffix == ".safetensors":
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise ImportError(f"{path} needs safetensors: pip install safetensors") from error
        # Readers of this format, transformers among them, look for the entry "format".
        text = {name: str(value) for name, value in (meta or {}).items()} | {"format": "pt"}
        tensors = {name: tensor.contiguous() for name, tensor in state_dict.items()}
        with replace_when_complete(target) as part:
            save_file(tensors, part, metadata=text)
        return
    content = dict(state_dict) if key is None else {"meta": dict(meta or {}), key: dict(state_dict)}
    with replace_when_complete(target) as part:
        torch.save(content, part)
