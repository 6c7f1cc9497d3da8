"""ConvNeXt V2 and FCMAE for dense prediction on OpenMMLab.

Importing this package needs torch alone and registers nothing. `mmconvnextv2.nn` has the plain
modules; importing `mmconvnextv2.models`, `mmconvnextv2.engine` or `mmconvnextv2.datasets` registers
their classes with OpenMMLab.
"""

from __future__ import annotations

import importlib
from typing import Any

from mmconvnextv2.version import __version__

_ENTRY_POINTS = {
    "pretrain": "mmconvnextv2.apis",
    "reconstruct": "mmconvnextv2.apis",
}

__all__ = ["__version__", *_ENTRY_POINTS]


def __getattr__(name: str) -> Any:
    if name not in _ENTRY_POINTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ENTRY_POINTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ENTRY_POINTS])
