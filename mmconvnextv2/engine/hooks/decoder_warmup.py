"""Hook that trains a fresh decoder alone before the encoder may change."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn


@HOOKS.register_module()
class DecoderWarmupHook(Hook):
    """Keep the encoder fixed for the first iterations of a run.

    The gradients of a decoder that knows nothing would spoil a pre-trained encoder. Until iteration
    `num_iters` the encoder's parameters ask for no gradient, which the optimizer therefore leaves
    alone, weight decay included; its backward pass is saved as well. Then all of them learn that
    were to learn from the beginning; `frozen_stages` stay frozen. The iteration decides, so a
    resumed run goes on as the interrupted one would have.

    Several processes need ``find_unused_parameters=True``.

    Args:
        num_iters: iterations, from the beginning of the run, in which the decoder learns alone.

    Raises:
        ValueError: `num_iters` is negative.
    """

    def __init__(self, num_iters: int) -> None:
        if num_iters < 0:
            raise ValueError(f"DecoderWarmupHook: num_iters must be at least 0, got {num_iters}")
        self.num_iters = num_iters
        self._frozen: list[nn.Parameter] = []

    def before_train(self, runner: Runner) -> None:
        """Freeze the encoder, unless the run is resumed behind the warm-up.

        Args:
            runner: the training process, after a resume has been loaded.

        Raises:
            ValueError: the model has no ``backbone``, or is wrapped for several processes without
                ``find_unused_parameters``.
        """
        if runner.iter >= self.num_iters:
            return
        model = runner.model
        if is_model_wrapper(model):
            if not getattr(model, "find_unused_parameters", True):
                raise ValueError(
                    "DecoderWarmupHook leaves the encoder without gradients at first: set "
                    "find_unused_parameters=True in the config"
                )
            model = model.module
        backbone = getattr(model, "backbone", None)
        if backbone is None:
            raise ValueError(f"DecoderWarmupHook needs a backbone; {type(model).__name__} has none")
        self._frozen = [p for p in backbone.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad = False
        runner.logger.info(
            f"decoder warm-up: {len(self._frozen)} tensors of the encoder are fixed until "
            f"iteration {self.num_iters}"
        )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Let the encoder learn when the warm-up is over."""
        if self._frozen and runner.iter >= self.num_iters:
            for parameter in self._frozen:
                parameter.requires_grad = True
            self._frozen = []
            runner.logger.info(f"iteration {runner.iter}: the encoder learns from now on")
