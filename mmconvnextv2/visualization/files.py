"""Writes files whole or not at all, so that nobody ever opens half a picture or half a report."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from PIL import Image


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` through a temporary file in the same folder and `os.replace`.

    Missing parent folders are made. On failure a file that was there before is left as it was.

    Args:
        path: Where the file shall be.
        data: Its whole content.

    Returns:
        The path of the file.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes files that only the owner can read; a picture should obey the umask instead.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write an image as PNG, atomically.

    Args:
        image: The picture.
        path: Where to write it; the name should end in `.png`.

    Returns:
        The path of the file.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return write_atomically(path, buffer.getvalue())


def _umask() -> int:
    # The umask can be read only by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
