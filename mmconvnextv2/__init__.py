"""ConvNeXt V2 and FCMAE for dense prediction on OpenMMLab.

Importing this package needs torch alone and registers nothing. `mmconvnextv2.nn` has the plain
modules; importing `mmconvnextv2.models`, `mmconvnextv2.engine` or `mmconvnextv2.datasets` registers
their classes with OpenMMLab. The functions below bring what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmconvnextv2.version import __version__

if TYPE_CHECKING:
    from mmconvnextv2.apis.continue_pretraining import continue_pretraining
    from mmconvnextv2.apis.pretrain import pretrain
    from mmconvnextv2.apis.reconstruct import reconstruct
    from mmconvnextv2.apis.zoo import find_model, get_config, get_model, list_models

__all__ = [
    "__version__",
    "continue_pretraining",
    "find_model",
    "get_config",
    "get_model",
    "list_models",
    "pretrain",
    "reconstruct",
]

_HOMES = {
    "continue_pretraining": "mmconvnextv2.apis.continue_pretraining",
    "find_model": "mmconvnextv2.apis.zoo",
    "get_config": "mmconvnextv2.apis.zoo",
    "get_model": "mmconvnextv2.apis.zoo",
    "list_models": "mmconvnextv2.apis.zoo",
    "pretrain": "mmconvnextv2.apis.pretrain",
    "reconstruct": "mmconvnextv2.apis.reconstruct",
}
"""Module of each function."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
