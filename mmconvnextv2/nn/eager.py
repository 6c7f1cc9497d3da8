"""Where the hand-written forms for a CPU apply."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether operations on a tensor run one by one, now, on a CPU.

    A compiler fuses plain operations by itself, an exporter needs them, and who counts on tensors
    without data wants to see them: all get those.
    """
    deferred = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and not deferred and not isinstance(x, FakeTensor)
