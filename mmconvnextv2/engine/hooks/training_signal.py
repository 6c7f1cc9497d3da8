"""Hook that keeps the figures of the held-out images, draws them, and says what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvnextv2.analysis.signal_summary import Record, find_collapse, summarize_signal
from mmconvnextv2.engine.loops import HeldOutLoop
from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.training_signal import plot_training_signal


@HOOKS.register_module()
class TrainingSignalHook(Hook):
    """Write `training_signal.json` and `training_signal.png` into the work_dir at each validation.

    Needs `HeldOutLoop` as the validation loop. The first validation comes before training, so that
    the start is on record too. Signs of collapsed features are logged as a warning when they first
    appear, and the end of training brings a summary in plain words, which the JSON file holds too.
    A resumed run goes on with the file of its work_dir, up to the iteration it resumes from. A
    validation that is made up for, or made again, takes the place of its record.

    Args:
        validate_first: whether to validate before training.

    Raises:
        TypeError: the validation loop is no `HeldOutLoop`.
    """

    # After CheckpointHook, which has to be ready for the validation before training.
    priority = "LOWEST"

    def __init__(self, validate_first: bool = True) -> None:
        self.validate_first = validate_first
        self._records: list[Record] = []
        self._signs: tuple[str, ...] = ()

    def before_train(self, runner: Runner) -> None:
        """Take up the record of a resumed run, or start one with a validation."""
        if not isinstance(runner.val_loop, HeldOutLoop):
            raise TypeError(
                "TrainingSignalHook records what HeldOutLoop measures, and the validation loop is "
                f"{type(runner.val_loop).__name__}: set val_cfg=dict(type='HeldOutLoop')"
            )
        self._signs = ()
        self._records = _read_records(_json_path(runner), runner.iter) if runner.iter else []
        if self.validate_first and runner.iter == 0:
            runner.val_loop.run()

    @master_only
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the figures to the record, write it, draw it, and warn of a collapse."""
        assert metrics is not None
        self._records = [record for record in self._records if record["step"] < runner.iter]
        record: Record = dict(step=runner.iter, epoch=runner.epoch, **metrics)
        train_loss = _mean_train_loss(runner, self._records)
        if train_loss is not None:
            record["train_loss"] = train_loss
        self._records.append(record)
        signs = find_collapse(self._records)
        if signs and not self._signs:
            runner.logger.warning(f"the features collapse: {'; '.join(signs)}")
        self._signs = signs
        self._write(runner)
        plot_training_signal(self._records, Path(runner.work_dir) / "training_signal.png")

    def after_train(self, runner: Runner) -> None:
        """Say in plain words what the record means."""
        if is_main_process() and self._records:
            num_images = len(runner.val_dataloader.dataset)
            summary = summarize_signal(self._records, num_images)
            runner.logger.info("\n".join(summary.lines))
            self._write(
                runner,
                summary=dict(
                    trend=summary.trend,
                    best_step=summary.best_step,
                    collapse=list(summary.collapse),
                    lines=list(summary.lines),
                ),
            )

    def _write(self, runner: Runner, summary: dict[str, Any] | None = None) -> None:
        content = dict(
            num_images=len(runner.val_dataloader.dataset),
            mask_seed=runner.val_loop.seed,
            records=self._records,
            summary=summary,
        )
        write_atomically(_json_path(runner), (json.dumps(content, indent=1) + "\n").encode())


def _json_path(runner: Runner) -> Path:
    return Path(runner.work_dir) / "training_signal.json"


def _read_records(path: Path, last_step: int) -> list[Record]:
    """The records of an interrupted run up to a step; none where it has left no file."""
    if not path.is_file():
        return []
    records = json.loads(path.read_text(encoding="utf-8"))["records"]
    return [record for record in records if record["step"] <= last_step]


def _mean_train_loss(runner: Runner, records: list[Record]) -> float | None:
    """Mean of the training loss since the last record; None before training."""
    window = runner.iter - int(records[-1]["step"] if records else 0)
    if window < 1:
        return None
    return float(runner.message_hub.get_scalar("train/loss").mean(window))
