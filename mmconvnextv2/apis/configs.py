"""Where the configs of this project are, in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

import mmconvnextv2

INDEX = "model-index.yml"


def resource_root() -> Path:
    """Folder that holds ``configs/``, ``tools/`` and ``model-index.yml``.

    That is ``.mim/`` inside an installed package, where OpenMMLab's tools look too, and the
    checkout around a package that was not installed.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = Path(mmconvnextv2.__file__).parent
    for folder in (package / ".mim", package.parent):
        # `configs/` alone does not tell: a site-packages folder may hold anybody's.
        if (folder / INDEX).is_file():
            return folder
    raise FileNotFoundError(
        f"no {INDEX} in {package / '.mim'} or {package.parent}: install the package from a "
        f"checkout, with `pip install .` or `pip install -e .`"
    )


def config_path(name: str) -> Path:
    """Path of one of this project's configs.

    Args:
        name: path below ``configs/``, such as ``fcmae/....py``.

    Raises:
        FileNotFoundError: there is no such config, or the configs are not installed.
    """
    path = resource_root() / "configs" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"no config {name} in {path.parents[len(Path(name).parts) - 1]}: "
            f"mmconvnextv2.apis.zoo.list_models() has the names of all"
        )
    return path
