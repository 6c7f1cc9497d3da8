"""Hook that checks the annotations of detection and segmentation before the first step."""

from __future__ import annotations

import re
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmconvnextv2.datasets.annotation_checks import check_annotations
from mmconvnextv2.engine.plain_model import plain_model

_HEAD = re.compile(r"(^|\.)(bbox|mask|decode|auxiliary)_head(\.\d+)?$")


@HOOKS.register_module()
class AnnotationCheckHook(Hook):
    """Refuse annotations that would break the run hours later, or that it would silently ignore.

    The training and the validation set are checked before training, the test set before a test, by
    `mmconvnextv2.datasets.annotation_checks.check_annotations`. The main process reads the files;
    all processes raise what it found.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the datasets of training and of validation.

        Args:
            runner: The training process.

        Raises:
            FileNotFoundError: An annotation file or a folder does not exist.
            ValueError: Annotations do not fit the images, the classes or the model.
        """
        _check_everywhere(runner.model, runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            _check_everywhere(runner.model, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Check the test set, as `before_train` does.

        Args:
            runner: The testing process.
        """
        _check_everywhere(runner.model, runner.test_dataloader.dataset)


def _check_everywhere(model: nn.Module, dataset: Any) -> None:
    """Let the main process check, and raise its error in all: none is left waiting."""
    outcome: list[Exception | None] = [None]
    if is_main_process():
        try:
            check_annotations(dataset, _num_classes(model))
        except (OSError, ValueError) as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]


def _num_classes(model: nn.Module) -> int | None:
    """Return how many classes the heads tell apart; None for a model without such heads.

    Raises:
        ValueError: The heads differ.
    """
    inner: Any = plain_model(model)
    counts = {
        name: module.num_classes
        for name, module in inner.named_modules()
        if _HEAD.search(name)
        and hasattr(module, "num_classes")
        and not getattr(module, "class_agnostic", False)
    }
    if len(set(counts.values())) > 1:
        named = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"the heads differ in num_classes: {named}")
    return next(iter(counts.values()), None)
