"""The hook that makes what a training step draws depend on (seed, rank, iteration) alone."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmconvnextv2.datasets.samplers import StatelessInfiniteSampler, StatelessSampler
from mmconvnextv2.datasets.stateless import StatelessDataset
from mmconvnextv2.seeding import Stream, derive_seed, seed_everything


@HOOKS.register_module()
class StatelessSeedHook(Hook):
    """Seeds Python, NumPy and torch from (seed, rank, iteration) before every training step.

    It runs after the batch is fetched and before the model sees it, so it covers masks, drop
    path, mixup, RoI sampling: everything that draws from the global generators. No random state
    has to be saved for a resume, and draws between two steps (a picture, a validation) change
    nothing. The seed is the Runner's, which a resume restores.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Refuse a training loader whose samples would not follow the run's seed and epoch.

        Args:
            runner: The training process, after a resume has been loaded.

        Raises:
            ValueError: A `StatelessDataset` without one of this project's samplers or the reverse,
                a sampler whose seed is not the run's, or an endless sampler in a loop that counts
                epochs.
        """
        loader = runner.train_dataloader
        sampler = _index_sampler(loader)
        if not isinstance(sampler, (StatelessSampler, StatelessInfiniteSampler)):
            if isinstance(loader.dataset, StatelessDataset):
                raise ValueError(
                    f"StatelessDataset is sampled by {type(sampler).__name__}, whose indices carry "
                    "no epoch: every epoch would repeat the same augmentation. Set "
                    "train_dataloader.sampler=dict(type='StatelessSampler', shuffle=True), or "
                    "'StatelessInfiniteSampler' where train_cfg counts iterations"
                )
        elif not isinstance(loader.dataset, StatelessDataset):
            raise ValueError(
                f"{type(sampler).__name__} hands its seed and epoch to a "
                f"{type(loader.dataset).__name__}, which ignores them: augmentation would "
                "depend on the number of workers. Wrap the dataset: "
                "dataset=dict(type='StatelessDataset', dataset=...)"
            )
        elif sampler.seed != runner.seed:
            raise ValueError(
                f"the run resumes with seed {runner.seed}, but its loader was built with seed "
                f"{sampler.seed}: the data would differ from the interrupted run's. Set "
                f"randomness=dict(seed={runner.seed})"
            )
        elif isinstance(sampler, StatelessInfiniteSampler) and isinstance(
            runner.train_loop, EpochBasedTrainLoop
        ):
            raise ValueError(
                "StatelessInfiniteSampler never ends an epoch, and train_cfg counts epochs: use "
                "sampler=dict(type='StatelessSampler', shuffle=True) or ResumableIterLoop"
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Seed the global generators for the step that follows.

        Args:
            runner: The training process.
            batch_idx: Position of the batch in its epoch; the run's own count is used instead.
            data_batch: The fetched batch.
        """
        seed_everything(derive_seed(runner.seed, Stream.STEP, get_rank(), runner.iter))


def _index_sampler(loader: DataLoader) -> Any:
    """Return the sampler that draws single indices, also below a batch sampler of any library."""
    return getattr(loader.batch_sampler, "sampler", loader.sampler)
