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
    from mmconvnextv2.apis.doctor import doctor
    from mmconvnextv2.apis.finetune import finetune
    from mmconvnextv2.apis.predict import predict
    from mmconvnextv2.apis.pretrain import pretrain
    from mmconvnextv2.apis.reconstruct import reconstruct
    from mmconvnextv2.apis.run_report import report
    from mmconvnextv2.apis.zoo import find_model, get_config, get_model, list_models

__all__ = [
    "__version__",
    "continue_pretraining",
    "doctor",
    "find_model",
    "finetune",
    "get_config",
    "get_model",
    "list_models",
    "predict",
    "pretrain",
    "reconstruct",
    "report",
]

_HOMES = {
    "continue_pretraining": "mmconvnextv2.apis.continue_pretraining",
    "doctor": "mmconvnextv2.apis.doctor",
    "find_model": "mmconvnextv2.apis.zoo",
    "finetune": "mmconvnextv2.apis.finetune",
    "get_config": "mmconvnextv2.apis.zoo",
    "get_model": "mmconvnextv2.apis.zoo",
    "list_models": "mmconvnextv2.apis.zoo",
    "predict": "mmconvnextv2.apis.predict",
    "pretrain": "mmconvnextv2.apis.pretrain",
    "reconstruct": "mmconvnextv2.apis.reconstruct",
    "report": "mmconvnextv2.apis.run_report",
}
"""Module of each function."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
