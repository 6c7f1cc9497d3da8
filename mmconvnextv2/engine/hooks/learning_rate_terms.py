"""Say at the start which learning rate meets which batch."""

from __future__ import annotations

import math

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvnextv2.engine.learning_rate import batch_terms


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
