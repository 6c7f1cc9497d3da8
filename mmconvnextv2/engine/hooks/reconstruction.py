"""Hook that draws what the model reconstructs, again and again from the same images and masks."""

from __future__ import annotations

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmconvnextv2.engine.plain_model import plain_model
from mmconvnextv2.seeding import seeded_cpu
from mmconvnextv2.visualization.files import save_png
from mmconvnextv2.visualization.prediction import draw_reconstructions


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Write a reconstruction grid every few epochs or iterations, and at the end of training.

    The pictures go to `work_dir/reconstructions/epoch_0001.png` (or `iter_0000001.png`) and to
    the runner's visualizer backends. The images are evenly spaced items of the training data set,
    fetched once with a fixed seed; the masks depend on the same seed, so that the pictures of a
    run, resumed or not, can be compared. Training is the same with and without this hook: modes
    and random states are put back, and no gradient is computed. Only rank 0 works, on the
    unwrapped model, so that no collective call can hang.

    Args:
        interval: Draw every so many epochs or iterations.
        by_epoch: Count epochs (True) or iterations (False).
        num_images: Number of images, that is rows of the grid; fewer where the data set is
            smaller.
        seed: Seed of the crops and of the masks.

    Raises:
        ValueError: `interval` or `num_images` is smaller than 1.
    """

    priority = "LOW"

    def __init__(
        self, interval: int = 1, by_epoch: bool = True, num_images: int = 8, seed: int = 0
    ) -> None:
        for name, value in (("interval", interval), ("num_images", num_images)):
            if value < 1:
                raise ValueError(f"ReconstructionHook: {name} must be at least 1, got {value}")
        self.interval = interval
        self.by_epoch = by_epoch
        self.num_images = num_images
        self.seed = seed
        self._images: list[Tensor] = []

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Fetch the images; a data set that cannot serve them fails here and not hours later."""
        dataset = runner.train_dataloader.dataset
        count = min(self.num_images, len(dataset))
        indices = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
        with seeded_cpu(self.seed):
            self._images = [dataset[index]["inputs"] for index in indices]

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Draw if an interval of epochs is full, or training ends."""
        due = self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)
        if self.by_epoch and due:
            # The runner has counted the last iteration by now, but not yet the epoch.
            self._draw(runner, f"epoch_{runner.epoch + 1:04d}", step=runner.iter)

    @master_only
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Draw if an interval of iterations is full, or training ends."""
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        if not self.by_epoch and due:
            step = runner.iter + 1
            self._draw(runner, f"iter_{step:07d}", step=step)

    def _draw(self, runner: Runner, name: str, step: int) -> None:
        grid = draw_reconstructions(plain_model(runner.model), self._images, seed=self.seed)
        path = save_png(grid, f"{runner.work_dir}/reconstructions/{name}.png")
        runner.visualizer.add_image("reconstruction", np.asarray(grid), step=step)
        print_log(f"Reconstructions of {len(self._images)} images: {path}", runner.logger)
