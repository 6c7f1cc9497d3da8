"""Writes pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from mmconvnextv2.files import write_atomically


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
