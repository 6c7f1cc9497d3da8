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
    places = [package.parent / "configs", package / ".mim" / "configs"]
    for place in places:
        if (place / name).is_file():
            return place / name
    looked = " nor in ".join(str(place) for place in places)
    raise FileNotFoundError(f"no config {name!r} in {looked}; install from a checkout")
