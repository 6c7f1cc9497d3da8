"""What is written and said about a training step that is not finite."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.runner import Runner
from torch import Tensor, nn

from mmconvnextv2.engine.nonfinite import (
    Call,
    first_bad_gradient,
    first_bad_output,
    kept_random_state,
)
from mmconvnextv2.engine.plain_model import plain_model
from mmconvnextv2.files import write_atomically


@dataclass
class Step:
    """What is kept of a step until it is known to be finite.

    ``call`` and ``loss`` are those of the last forward pass, ``buffers`` the model's as they were
    before it, where they are kept; ``looked`` says whether loss and gradients have been checked.
    """

    data_batch: Any
    call: Call | None = None
    loss: Tensor | None = None
    buffers: list[Tensor] = field(default_factory=list)
    looked: bool = False


class NonFiniteReport:
    """What is written about a step that is not finite, by all processes together.

    Args:
        runner: the training process.
        step: the step.
        reason: what is not finite.
    """

    def __init__(self, runner: Runner, step: Step, reason: str) -> None:
        self.step = step
        number = runner.iter + 1
        self.path = Path(runner.work_dir) / "nonfinite" / f"iter_{number}.json"
        self.sentence = f"{reason} in step {number} (epoch {runner.epoch + 1})"
        call = step.call
        own = dict(
            rank=get_rank(),
            loss=None if step.loss is None else _json_number(step.loss.item()),
            images=image_names(step.data_batch),
            input_is_finite=None if call is None else call.input_is_finite,
            origin=None,
        )
        self.content: dict[str, Any] = dict(
            reason=reason,
            step=number,
            epoch=runner.epoch + 1,
            seed=runner.seed,
            ranks=all_gather_object(own),
        )
        self.random_states = all_gather_object(None if call is None else call.random_state)

    def write(self) -> None:
        """Write both files, in the main process."""
        if not is_main_process():
            return
        write_atomically(self.path, json.dumps(self.content, indent=2).encode())
        states = io.BytesIO()
        torch.save(self.random_states, states)
        write_atomically(self.path.with_suffix(".pt"), states.getvalue())

    def locate(self, runner: Runner) -> None:
        """Find the origin and complete the sentence with it."""
        model, call = plain_model(runner.model), self.step.call
        if call is None:
            self.sentence += (
                ", and the model was not called with mode='loss', so its origin is open"
            )
            return
        with kept_random_state():
            origins = _origins(model, call, runner.optim_wrapper.optim_context(runner.model))
        for rank, origin in zip(self.content["ranks"], origins, strict=True):
            rank["origin"] = origin
        where = next((rank for rank in self.content["ranks"] if rank["origin"] is not None), None)
        if where is None:
            self.sentence += ", and a repetition of its forward and backward pass was finite"
            return
        self.sentence += f"; {where['origin']}"
        if not where["input_is_finite"]:
            self.sentence += ", whose input was not finite either"
        if len(origins) > 1:
            self.sentence += f", on rank {where['rank']}"


def _origins(
    model: nn.Module, call: Call, context: AbstractContextManager[None]
) -> list[str | None]:
    """Where the repeated step stops being finite, in words, for each process.

    All processes do the same, because layers such as SyncBN wait for each other.
    """
    losses: Any = None
    origin = None
    # Whatever the search runs into must not hide what it was started for.
    try:
        with context, torch.enable_grad():
            name, losses = first_bad_output(model, lambda: call.repeat(model))
        if name is not None:
            origin = f"the first output that is not finite is that of {name}"
    except Exception as error:
        origin = f"the search for its origin failed with {type(error).__name__}: {error}"
    origins = all_gather_object(origin)
    if any(found is not None for found in origins):
        return origins
    try:
        name = first_bad_gradient(model, losses)
        if name is not None:
            origin = f"all outputs are finite, the first gradient that is not is that of '{name}'"
    except Exception as error:
        origin = f"the search for its origin failed with {type(error).__name__}: {error}"
    return all_gather_object(origin)


def image_names(data_batch: Any) -> list[str]:
    """Paths of the images of a batch, in its order; empty where its samples have none.

    Args:
        data_batch: a batch as loaders of OpenMMLab deliver it.
    """
    samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
    paths = [getattr(sample, "img_path", None) for sample in samples or []]
    return [str(path) for path in paths if path is not None]


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)
