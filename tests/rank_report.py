"""A hook for distributed runs under test: every rank writes down what it saw and what it has."""

from __future__ import annotations

import atexit
import hashlib
import json
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import distributed, nn


@HOOKS.register_module()
class RankReportHook(Hook):
    """Write `rank<n>.json` into the work directory when the process ends.

    ``left_group`` says whether it had left its process group by then, ``before`` and ``after`` are
    digests of every parameter, ``seen`` the pictures of each step.
    Buffers are left out: statistics of a BatchNorm are each rank's own, and rank 0 saves.
    """

    def __init__(self) -> None:
        self.report: dict[str, Any] = dict(seen=[], metrics=None)

    def before_train(self, runner: Runner) -> None:
        """Note how the model is wrapped and what it starts from."""
        self.report.update(
            wrapper=type(runner.model).__name__,
            find_unused_parameters=runner.model.find_unused_parameters,
            before=digests(runner.model),
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the pictures of the step."""
        self.report["seen"].append([sample.img_path for sample in data_batch["data_samples"]])

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Note the metrics, which the evaluator has sent to all ranks."""
        self.report["metrics"] = {name: float(value) for name, value in metrics.items()}

    def after_train(self, runner: Runner) -> None:
        """Note what training has come to, and write the report at the very end."""
        self.report.update(iterations=runner.iter, after=digests(runner.model))
        atexit.register(self.write, Path(runner.work_dir) / f"rank{runner.rank}.json")

    def write(self, path: Path) -> None:
        """Write the report."""
        self.report["left_group"] = not distributed.is_initialized()
        path.write_text(json.dumps(self.report))


def digests(model: nn.Module) -> dict[str, str]:
    """A hash of every parameter's bytes."""
    return {
        name: hashlib.sha256(parameter.detach().cpu().numpy().tobytes()).hexdigest()
        for name, parameter in model.named_parameters()
    }
