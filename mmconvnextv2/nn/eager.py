"""Where the hand-written forms for a CPU apply."""

from __future__ import annotations

import torch
from torch import Tensor


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether operations on a tensor run one by one, now, on a CPU.

    A compiler fuses plain operations by itself, and an exporter needs them: both get those.
    """
    deferred = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and not deferred
