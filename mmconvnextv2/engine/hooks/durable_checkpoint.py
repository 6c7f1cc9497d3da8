"""Checkpoints that outlive a kill at any moment, a power cut and a full disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvnextv2.files import remove_unfinished, write_atomically

DURABLE = dict(backend="durable")
"""``backend_args`` with which mmengine writes through `DurableBackend`."""

_KEPT = "kept_checkpoints"


class CheckpointNotWrittenError(OSError):
    """A checkpoint could not be written, as on a full disk; the earlier ones are intact."""


@register_backend("durable", force=True)
class DurableBackend(LocalBackend):
    """Local files that are whole and on the disk when `put` returns, or what they were before."""

    def put(self, obj: bytes, filepath: str | os.PathLike[str]) -> None:
        """Write a file.

        Args:
            obj: its content.
            filepath: its path.

        Raises:
            CheckpointNotWrittenError: it cannot be written.
        """
        try:
            write_atomically(filepath, obj)
        except OSError as error:
            raise CheckpointNotWrittenError(
                error.errno,
                f"{error.strerror}: the run stops, since {len(obj):,} bytes could not be written; "
                "earlier checkpoints are intact. Put this right and go on with --resume",
                str(filepath),
            ) from error


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, except that a crash at any moment leaves a complete checkpoint.

    A checkpoint, the best-so-far one included, has its name only when all of it is on the disk;
    older ones are deleted after that. All lie in the work_dir, where ``--resume`` looks for them.
    While one is written, it is in memory twice, as tensors and as the bytes of the file.

    Args:
        interval: epochs or iterations from one checkpoint to the next; -1 for the last alone.
        by_epoch: whether `interval` counts epochs.
        max_keep_ckpts: how many to keep of those a run can resume from; -1 keeps all. Two are the
            least, so that one is left when the newest turns out to be damaged: 1 becomes 2, with a
            warning.
        save_last: write one at the end, whatever the interval.
        save_best: metrics of which to keep the best checkpoint so far, "auto" for the first metric.
            It has no optimizer state, and is no file to resume from.
        rule: "greater" or "less", for each metric; told from its name when None.
        greater_keys: parts of names of metrics of which more is better; mmengine's when None.
        less_keys: the same for less.
        save_begin: epoch or iteration of the first checkpoint.

    Raises:
        ValueError: `max_keep_ckpts` is neither -1 nor positive.
    """

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | list[str] | None = None,
        rule: str | list[str] | None = None,
        greater_keys: Sequence[str] | None = None,
        less_keys: Sequence[str] | None = None,
        save_begin: int = 0,
    ) -> None:
        if max_keep_ckpts < 1 and max_keep_ckpts != -1:
            raise ValueError(f"max_keep_ckpts must be -1 (all) or at least 2, got {max_keep_ckpts}")
        # The base class keeps all: it would delete before it writes.
        super().__init__(
            interval=interval,
            by_epoch=by_epoch,
            save_last=save_last,
            save_best=save_best,
            rule=rule,
            greater_keys=greater_keys,
            less_keys=less_keys,
            save_begin=save_begin,
            backend_args=DURABLE,
        )
        self._asked = max_keep_ckpts
        self.num_kept = 2 if max_keep_ckpts == 1 else max_keep_ckpts
        self._kept: list[str] = []

    def before_train(self, runner: Runner) -> None:
        """Take up the list of checkpoints of a resumed run, and clear what a killed one left.

        Args:
            runner: the runner of the training process.
        """
        super().before_train(runner)
        self._kept = list(runner.message_hub.get_info(_KEPT, []))
        if not is_main_process():
            return
        if self.num_kept != self._asked:
            runner.logger.warning(
                f"max_keep_ckpts={self._asked} keeps {self.num_kept}: a run that is to be "
                "resumed needs another one where the newest is damaged"
            )
        for part in remove_unfinished(self.out_dir):
            runner.logger.info(f"removed {part}, which an interrupted run has not finished")

    def save_now(self, runner: Runner) -> Path:
        """Write a checkpoint in between, as ``iter_<n>.pth``; for `after_train_iter` of a hook.

        It counts as one of those that are kept. All processes call this.

        Args:
            runner: the runner of the training process.

        Returns:
            Its path.

        Raises:
            CheckpointNotWrittenError: it cannot be written.
        """
        step = runner.iter + 1
        meta = dict(epoch=runner.epoch, iter=step)
        return self._write(runner, f"iter_{step}.pth", meta, by_epoch=False)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        self._write(runner, self.filename_tmpl.format(step), meta, self.by_epoch)

    def _write(self, runner: Runner, name: str, meta: dict[str, Any], by_epoch: bool) -> Path:
        path = Path(self.out_dir) / name
        self.last_ckpt = str(path)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        self._kept = [*(other for other in self._kept if other != name), name]
        runner.message_hub.update_info(_KEPT, self._kept)
        runner.save_checkpoint(
            self.out_dir, name, meta=meta, by_epoch=by_epoch, backend_args=DURABLE
        )
        if is_main_process():
            # For mmengine's own tools; to resume, the files themselves are looked at.
            self.file_backend.put(str(path).encode(), Path(runner.work_dir) / "last_checkpoint")
            self._prune()
        return path

    def _prune(self) -> None:
        if self.num_kept == -1:
            return
        present = [name for name in self._kept if (Path(self.out_dir) / name).is_file()]
        for name in present[: -self.num_kept]:
            (Path(self.out_dir) / name).unlink()
        self._kept = present[-self.num_kept :]

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best:
            return
        # The base class deletes the best one that it knows of before it writes the next.
        former, self._best = self._best, dict.fromkeys(self._best)
        super()._save_best_checkpoint(runner, metrics)
        pairs = zip(self._best.items(), former.values(), strict=True)
        self._best = {metric: new or old for (metric, new), old in pairs}
        if is_main_process():
            for path in former.values():
                if path is not None and path not in self._best.values():
                    Path(path).unlink(missing_ok=True)

    @property
    def _best(self) -> dict[str, str | None]:
        """Path of the best checkpoint by metric; mmengine has two places for it."""
        if len(self.key_indicators) == 1:
            return {self.key_indicators[0]: self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    @_best.setter
    def _best(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            (self.best_ckpt_path,) = paths.values()
        else:
            self.best_ckpt_path_dict = paths
