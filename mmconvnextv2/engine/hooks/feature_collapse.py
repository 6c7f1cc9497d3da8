"""Hook that warns while it happens that the channels of a backbone become copies of each other."""

from __future__ import annotations

from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmconvnextv2.analysis.block_features import block_names
from mmconvnextv2.analysis.feature_statistics import COLLAPSED_BELOW, stage_diversity
from mmconvnextv2.engine.plain_model import plain_model
from mmconvnextv2.nn.arguments import check_count
from mmconvnextv2.seeding import seeded_cpu
from mmconvnextv2.visualization.prediction import evaluation_mode


@HOOKS.register_module()
class FeatureCollapseHook(Hook):
    """Measure the diversity of the channels of each stage every few iterations.

    Measured is the mean cosine distance of the channels inside the blocks (`stage_diversity`), on
    whole images of the training batch, in evaluation mode and without gradients: about the cost
    of a forward pass of so many images. The figures are logged as ``feature_diversity_stage1`` and
    so on. The first time that a stage falls below the threshold, a warning says so; after a resume
    it may come again. Training is the same with and without this hook. Only rank 0 measures, on
    the unwrapped model.

    For any task whose model has a backbone that `visit_blocks` knows. Where `HeldOutLoop` measures
    the same on held-out images, `TrainingSignalHook` judges it against the start of the run.

    Args:
        interval: iterations between two measurements.
        threshold: distance below which a stage collapses; `COLLAPSED_BELOW` says why 0.35.
        num_images: images of the batch to measure, at most.

    Raises:
        ValueError: a number is outside what is allowed.
        TypeError: the backbone's blocks are not known.
    """

    def __init__(
        self, interval: int = 500, threshold: float = COLLAPSED_BELOW, num_images: int = 8
    ) -> None:
        check_count("interval", interval)
        check_count("num_images", num_images)
        if not 0 < threshold < 0.5:
            raise ValueError(f"threshold must lie strictly between 0 and 0.5, got {threshold}")
        self.interval = interval
        self.threshold = threshold
        self.num_images = num_images
        self._warned: set[int] = set()

    def before_train(self, runner: Runner) -> None:
        """Refuse a backbone whose blocks are not known at the start, and not in the middle."""
        model: Any = plain_model(runner.model)
        block_names(model.backbone)

    @master_only
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Measure if an interval is full, log the figures, and warn of a stage once."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        for stage, value in enumerate(self._measure(runner, data_batch), start=1):
            runner.message_hub.update_scalar(f"train/feature_diversity_stage{stage}", value)
            if value < self.threshold and stage not in self._warned:
                self._warned.add(stage)
                runner.logger.warning(
                    f"the features collapse: the mean cosine distance between the channels of "
                    f"stage {stage} is {value:.3f} at iteration {runner.iter + 1}, below "
                    f"{self.threshold:g}; a ConvNeXt V2 that trains well has 0.41 to 0.49"
                )

    def _measure(self, runner: Runner, data_batch: DATA_BATCH) -> list[float]:
        model: Any = plain_model(runner.model)
        # A preprocessor may draw, such as FCMAE's its mask.
        with seeded_cpu(0), evaluation_mode(model):
            inputs = model.data_preprocessor(data_batch, False)["inputs"]
            # Several views of each image come as a list.
            x_NCHW: Tensor = inputs if isinstance(inputs, Tensor) else inputs[0]
            # A missing value is encoded as the mean.
            x_NCHW = x_NCHW[: self.num_images].nan_to_num(0.0)
            diversity_NS, _ = stage_diversity(model.backbone, x_NCHW)
        return diversity_NS.mean(dim=0).tolist()
