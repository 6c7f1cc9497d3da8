"""Resume and load a whole model strictly."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvnextv2.checkpoint.loading import check_fits


@HOOKS.register_module()
class StrictLoadingHook(Hook):
    """Refuse a checkpoint that does not hold exactly the model's tensors.

    mmengine resumes and loads (``load_from``) with ``strict=False``: a file of another model leaves
    random weights behind a line in the log. To start a model from parts of another, name the file
    in ``init_cfg`` of the part.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare the tensors before they are copied.

        Args:
            runner: the runner that loads.
            checkpoint: what was read.

        Raises:
            StateDictMismatch: with the lists of what differs.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        check_fits(model.state_dict(), checkpoint.get("state_dict", checkpoint))
