"""Early stopping that a resume does not make forgetful."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook with its best score and its patience in every checkpoint.

    mmengine's own starts both anew when a run resumes. This one keeps them in the message hub. A
    validation that a resumed run makes again counts once, and a run that had stopped stops again
    unless its patience has been raised. The arguments are those of mmengine's hook.
    """

    # Before CheckpointHook, which writes a checkpoint after a validation that was the best so far.
    priority = "LOW"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._key = f"early_stopping/{self.monitor}"
        self._counted_at: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Take up what the checkpoint of a resumed run holds.

        Args:
            runner: the training process, after a resume has been loaded.
        """
        state = runner.message_hub.get_info(self._key) if runner.iter > 0 else None
        if state is None:
            return
        self.best_score, self.wait_count = state["best_score"], state["wait_count"]
        self._counted_at = state["iteration"]
        limit = self.stopping_threshold
        reached = limit is not None and self.rule_map[self.rule](self.best_score, limit)
        if reached or self.wait_count >= self.patience:
            runner.train_loop.stop_training = True
            runner.logger.info(
                f"the run had stopped early: best {self.monitor} {self.best_score:.4g}, "
                f"{self.wait_count} validations without a better one"
            )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Decide whether to stop, and note what was decided from.

        Args:
            runner: the training process.
            metrics: what the validation has measured.
        """
        if runner.iter == self._counted_at:
            return
        super().after_val_epoch(runner, metrics)
        self._counted_at = runner.iter
        runner.message_hub.update_info(
            self._key,
            dict(
                best_score=float(self.best_score),
                wait_count=self.wait_count,
                iteration=self._counted_at,
            ),
        )
