"""Writes files whole or not at all, so that nobody ever opens half of one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_complete(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Name a temporary file beside `path`, which takes its place if the block succeeds.

    After an error `path` is what it was, and the temporary file is gone.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path`; missing parent folders are made.

    Args:
        path: Where the file shall be.
        data: Its whole content.

    Returns:
        The path of the file.

    Raises:
        OSError: The folder or the file cannot be written; a file that was there is what it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(target) as part:
        part.write_bytes(data)
    return target
