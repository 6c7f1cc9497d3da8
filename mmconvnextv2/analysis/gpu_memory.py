"""Memory of a pre-training step on one of several GPUs, worked out from shapes alone.

Nothing is measured here and nothing runs on a GPU: a step is taken with tensors that have shapes
and no values, and every tensor that it makes is counted for as long as it lives. What comes on top
on a real card: the CUDA context, workspaces of libraries, buffers of NCCL, and what the allocator
holds in pieces too small to use, together about one to three GB.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmconvnextv2.analysis.complexity import build_model, default_shape, shapes_only
from mmconvnextv2.analysis.measured_step import count_lasting, precision_of
from mmconvnextv2.benchmark.ours import MASK_RATIO
from mmconvnextv2.benchmark.steps import DTYPES, autocast
from mmconvnextv2.nn import CELL_SIZE, VisibleCells, random_masking


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on the GPU that holds most.

    Attributes:
        parameters: parameters and buffers.
        gradients: one for each trained parameter, and a second one where the processes exchange
            them in buckets of their own.
        optimizer: the optimizer's state, or the largest share of it.
        activations: what a step needs on top, at its peak.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def estimate_memory(cfg: Config, processes: int, batch: int | None = None) -> GpuMemory:
    """Work out what a config of FCMAE needs on each of so many GPUs.

    Args:
        cfg: a whole config.
        processes: number of GPUs.
        batch: images of one GPU; those of the config when None.

    Raises:
        ValueError: a model of another kind, or a number smaller than 1.
    """
    batch = cfg.train_dataloader.batch_size if batch is None else batch
    for name, value in (("GPUs", processes), ("images in a batch", batch)):
        if value < 1:
            raise ValueError(f"the number of {name} must be at least 1, got {value}")
    if cfg.model.type != "FCMAE":
        raise ValueError(f"only steps of FCMAE are estimated, and the model is {cfg.model.type}")
    lasting = count_lasting(cfg)
    in_buckets = (cfg.get("model_wrapper_cfg") or {}).get("gradient_as_bucket_view", False)
    copies = 2 if processes > 1 and not in_buckets else 1
    optimizer = lasting.optimizer
    if cfg.optim_wrapper.optimizer.type == "ShardedOptimizer":
        with shapes_only():
            sizes = [p.numel() for p in build_model(cfg).parameters() if p.requires_grad]
        optimizer = optimizer * largest_share(sizes, processes) // sum(sizes)
    return GpuMemory(
        lasting.parameters + lasting.averaged,
        copies * lasting.gradients,
        optimizer,
        activation_bytes(cfg, batch),
    )


def largest_share(sizes: Iterable[int], processes: int) -> int:
    """Elements of the process that holds most of a `ShardedOptimizer`'s parameters.

    torch deals whole parameters out, the largest first, each to the process with the least so far.

    Args:
        sizes: elements of each parameter.
        processes: number of processes.
    """
    shares = [0] * processes
    for size in sorted(sizes, reverse=True):
        heapq.heapreplace(shares, shares[0] + size)
    return max(shares)


def activation_bytes(cfg: Config, batch: int) -> int:
    """Bytes that a forward and a backward pass need at their peak, images included.

    Parameters, gradients and the optimizer's state exist before and do not count. Taken are plain
    operations one by one, which is what a GPU runs where blocks are not compiled.

    Args:
        cfg: a config of FCMAE.
        batch: number of images.
    """
    shape = default_shape(cfg)
    ratio = cfg.model.data_preprocessor.get("mask_ratio", MASK_RATIO)
    grid = (shape[0] // CELL_SIZE, shape[1] // CELL_SIZE)
    # The plan is read from the mask's values, so it is made where tensors have values.
    cells = VisibleCells.from_mask(random_masking(batch, grid, ratio))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(cfg).train()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        lasting = [*model.parameters(), *(p.grad for p in model.parameters()), *model.buffers()]
        with LiveMemory(lasting) as memory:
            images_NCHW = torch.empty(batch, model.backbone.in_channels, *shape)
            with autocast(torch.device("cpu"), DTYPES[precision_of(cfg)]):
                loss = model.loss(images_NCHW, cells)["loss"]
            loss.backward()
    return memory.peak


class LiveMemory(TorchDispatchMode):
    """Within it, the bytes of all tensors that operations make are counted while they live.

    Args:
        lasting: tensors that exist before, and do not count.

    Attributes:
        current: bytes of those that live now.
        peak: the most there has been at a time.
    """

    def __init__(self, lasting: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._storages = {tensor.untyped_storage()._cdata for tensor in lasting}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns; views share what is counted."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._storages:
            return
        self._storages.add(address)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._storages.discard(address)
        self.current -= size
