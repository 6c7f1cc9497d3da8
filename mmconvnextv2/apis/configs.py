"""Where the configs of this project are."""

from __future__ import annotations

from pathlib import Path

import mmconvnextv2


def config_path(name: str) -> Path:
    """Path of one of this project's configs.

    Args:
        name: path below ``configs/``, such as ``fcmae/....py``.

    Raises:
        FileNotFoundError: there is no such config beside the package.
    """
    package = Path(mmconvnextv2.__file__).parent
    path = package.parent / "configs" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"no config at {path}: configs/ lies beside the package in a checkout; install from "
            f"one with `pip install -e .`"
        )
    return path
