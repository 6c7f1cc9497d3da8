"""Learning rates and the batch they are meant for: linear scaling, and a hook that says both.

A config states ``optim_wrapper.optimizer.lr`` for ``auto_scale_lr.base_batch_size`` images a step.
`scale_learning_rate` rewrites the rate for the batch that a run really has and notes the factor as
``auto_scale_lr.scaled_by``, so that a config, dumped or not, always says which batch its rate fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@dataclass(frozen=True)
class BatchTerms:
    """What makes up the number of images behind one step of the optimizer.

    Args:
        world_size: number of processes.
        per_device: images in one batch of one process.
        accumulation: batches whose gradients are summed before a step.
    """

    world_size: int
    per_device: int
    accumulation: int

    @property
    def effective(self) -> int:
        """Images behind one step of the optimizer."""
        return self.world_size * self.per_device * self.accumulation

    def __str__(self) -> str:
        return (
            f"{self.world_size} (processes) x {self.per_device} (images a batch) "
            f"x {self.accumulation} (accumulated batches) = {self.effective} images a step"
        )


def batch_terms(cfg: Config, world_size: int) -> BatchTerms:
    """Read the terms of the effective batch from a config.

    Args:
        cfg: a training config.
        world_size: number of processes.

    Raises:
        ValueError: if the config says no batch size.
    """
    loader = cfg.get("train_dataloader") or {}
    batch_sampler = loader.get("batch_sampler") or {}
    per_device = loader.get("batch_size") or batch_sampler.get("batch_size")
    if per_device is None:
        raise ValueError("the config has no train_dataloader.batch_size: state the images a batch")
    accumulation = (cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    return BatchTerms(world_size, per_device, accumulation)


def scale_learning_rate(cfg: Config, world_size: int) -> float:
    """Rescale the learning rate of a config, in place, to the batch of the coming run.

    Linear scaling: rate x effective batch / base batch, where the effective batch counts processes,
    images a batch and accumulated batches. A config that was scaled before is scaled from its
    original rate, so calling this twice changes nothing. Rates that a scheduler states absolutely
    (``eta_min``) stay, as in the official code; mmengine's own scaling is switched off.

    Args:
        cfg: a training config with ``auto_scale_lr.base_batch_size``.
        world_size: number of processes.

    Returns:
        The factor between the original and the new rate.

    Raises:
        ValueError: if the config says no base batch size, no batch size or no learning rate.
    """
    auto_scale = cfg.get("auto_scale_lr") or {}
    base_batch_size = auto_scale.get("base_batch_size")
    if not base_batch_size:
        raise ValueError(
            "the config has no auto_scale_lr.base_batch_size, so its learning rate cannot be "
            "scaled: add auto_scale_lr = dict(base_batch_size=...), the batch the rate is meant for"
        )
    optimizer = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
    if "lr" not in optimizer:
        raise ValueError("the config has no optim_wrapper.optimizer.lr: there is nothing to scale")

    factor = batch_terms(cfg, world_size).effective / base_batch_size
    optimizer["lr"] = optimizer["lr"] / auto_scale.get("scaled_by", 1.0) * factor
    auto_scale["scaled_by"] = factor
    auto_scale["enable"] = False
    return factor


@HOOKS.register_module()
class LearningRateTermsHook(Hook):
    """Prints, once at the start of training, the learning rate and the batch it is used with.

    Warns when the rate was stated for another batch than the one that training will see.
    """

    def before_train(self, runner: Runner) -> None:
        """Log the terms; the warning names the remedy.

        Raises:
            ValueError: if the config says no batch size.
        """
        terms = batch_terms(runner.cfg, runner.world_size)
        auto_scale = runner.cfg.get("auto_scale_lr") or {}
        base_batch_size = auto_scale.get("base_batch_size")
        scaled_by = auto_scale.get("scaled_by", 1.0)

        groups = runner.optim_wrapper.optimizer.param_groups
        rates = sorted({group.get("initial_lr", group["lr"]) for group in groups})
        spread = f"{rates[0]:.4g}" if len(rates) == 1 else f"{rates[0]:.4g} to {rates[-1]:.4g}"
        runner.logger.info(
            f"learning rate {spread} in {len(groups)} parameter groups, scaled by {scaled_by:g}; "
            f"base batch {base_batch_size or 'not stated'}; effective batch {terms}"
        )

        if base_batch_size is None:
            return
        factor = terms.effective / base_batch_size
        if not math.isclose(factor, scaled_by, rel_tol=1e-6):
            runner.logger.warning(
                f"the config's learning rate is meant for {base_batch_size} images a step and was "
                f"scaled by {scaled_by:g}, but this run has {terms.effective}, which asks for "
                f"{factor:g}: start with --auto-scale-lr, or state the rate and its batch anew"
            )
