"""Schedules of a run that is resumed with another number of iterations in an epoch."""

from __future__ import annotations

import warnings

from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner


def replay_schedules(runner: Runner, epochs: int, batches: int) -> str:
    """Put schedulers and rates where this run would be, had it always had its epochs.

    mmengine takes schedulers from a checkpoint as they were. Those that count iterations would end
    early or late when an epoch has more or fewer of them than before. They are built anew and
    stepped from the beginning, from the initial rates of the checkpoint.

    Args:
        runner: the training process, with a checkpoint loaded; its loop counts epochs.
        epochs: whole epochs that are done.
        batches: iterations of the epoch after these that are done.

    Returns:
        A line for the log.
    """
    config = runner.cfg.get("param_scheduler")
    if config is None or isinstance(runner.optim_wrapper, OptimWrapperDict):
        return "learning rate schedules stay those of the checkpoint: they may end early or late"
    for group in runner.optim_wrapper.param_groups:
        initial = {key: value for key, value in group.items() if key.startswith("initial_")}
        group.update({key.removeprefix("initial_"): value for key, value in initial.items()})
    length = len(runner.train_dataloader)
    with warnings.catch_warnings():
        # A scheduler that is stepped before the optimizer takes that for a mistake.
        warnings.simplefilter("ignore", UserWarning)
        runner.param_schedulers = runner.build_param_scheduler(config)
        for iteration in range(1, epochs * length + batches + 1):
            _step(runner, by_epoch=False)
            if iteration % length == 0 and iteration // length <= epochs:
                _step(runner, by_epoch=True)
    return (
        "learning rate schedules go on at the same point of the run; the initial rate stays that "
        "of the checkpoint"
    )


def _step(runner: Runner, by_epoch: bool) -> None:
    for scheduler in runner.param_schedulers:
        if scheduler.by_epoch == by_epoch:
            scheduler.step()
