"""Writes files whole or not at all, so that nobody ever opens half of one."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PART_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.part")


@contextmanager
def replace_when_complete(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Name a temporary file beside `path`, which takes its place if the block succeeds.

    After an error `path` is what it was, and the temporary file is gone. A killed process may leave
    the temporary file behind (`remove_unfinished`). The content is on the disk before it takes the
    name, and the name before this returns: a power cut leaves the whole old file or the whole new
    one, and what is deleted after this was not yet needed.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
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


def remove_unfinished(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files that killed processes have left in a folder.

    Nobody may be writing there.

    Returns:
        What was removed.
    """
    parts = [path for path in Path(folder).iterdir() if _PART_NAME.fullmatch(path.name)]
    for part in parts:
        part.unlink()
    return parts


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    if os.name == "nt":  # opens no folders, and syncs files through writable handles alone
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems have no such thing for folders, and say so.
        if not (path.is_dir() and error.errno in (errno.EBADF, errno.EINVAL)):
            raise
    finally:
        os.close(descriptor)
