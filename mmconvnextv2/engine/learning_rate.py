"""Learning rates and the batch they are meant for.

A config states ``optim_wrapper.optimizer.lr`` for ``auto_scale_lr.base_batch_size`` images a step.
`scale_learning_rate` rewrites the rate for the batch that a run really has and notes the factor as
``auto_scale_lr.scaled_by``, so that a config, dumped or not, always says which batch its rate fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmengine.config import Config


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
