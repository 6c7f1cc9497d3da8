"""The samplers whose indices carry seed and epoch to the dataset: one ends, one never does."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from mmconvnextv2.datasets.annotation_checks import check_annotations
from mmconvnextv2.datasets.stateless import SeededIndex
from mmconvnextv2.seeding import Stream, derive_seed


@DATA_SAMPLERS.register_module()
class StatelessSampler(DefaultSampler):
    """mmengine's DefaultSampler with an order from (seed, epoch) that yields `SeededIndex`.

    Ranks share one order and take every world-size-th index of it. `set_epoch` is called by
    mmengine's `DistSamplerSeedHook`, one of its default hooks. Use it together with
    `StatelessDataset`.

    Args:
        dataset: The dataset; only its length is used.
        seed: The run's seed, the same on all ranks. mmengine's Runner passes it.
        shuffle: Whether to shuffle. The indices carry seed and epoch either way.
        round_up: Whether to repeat indices from the start of the order so that every rank gets
            equally many.

    Raises:
        ValueError: `seed` is None or `dataset` is empty; where its annotations are to blame, the
            message names their file.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int | None = None,
        shuffle: bool = True,
        round_up: bool = True,
    ) -> None:
        _check(type(self).__name__, dataset, seed)
        super().__init__(dataset, shuffle=shuffle, seed=seed, round_up=round_up)

    def __iter__(self) -> Iterator[SeededIndex]:
        """Yield this rank's indices of the current epoch."""
        order = _order(len(self.dataset), self.seed, self.epoch, self.shuffle)
        # Modulo repeats the order from its start where rounding up asks for more than it has.
        for position in range(self.rank, self.total_size, self.world_size):
            yield SeededIndex(order[position % len(order)], epoch=self.epoch, seed=self.seed)


@DATA_SAMPLERS.register_module()
class StatelessInfiniteSampler(Sampler[SeededIndex]):
    """One epoch after the other without end, for loops that count iterations.

    The epochs of `StatelessSampler` are strung together, and ranks take every world-size-th index
    of that sequence; so an epoch may begin within a batch. What stands at a position depends on
    (seed, position) alone: iterating anew starts at the same place again. A resumed loop either
    draws the batches it has already seen and throws them away, as classic mmengine does, or calls
    `skip`; both lead to where the uninterrupted run would be.

    Args:
        dataset: The dataset; only its length is used.
        seed: The run's seed, the same on all ranks. mmengine's Runner passes it.
        shuffle: Whether to shuffle. The indices carry seed and epoch either way.

    Raises:
        ValueError: `seed` is None or `dataset` is empty; where its annotations are to blame, the
            message names their file.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, shuffle: bool = True) -> None:
        self.seed = _check(type(self).__name__, dataset, seed)
        self.dataset = dataset
        self.shuffle = shuffle
        self.rank, self.world_size = get_dist_info()
        self._first = 0

    def skip(self, num_samples: int) -> None:
        """Let every iteration start later; maintained mmengine calls this when a run resumes.

        Args:
            num_samples: Samples of this rank to leave out, counted from the very first one.

        Raises:
            ValueError: `num_samples` is negative.
        """
        if num_samples < 0:
            raise ValueError(f"num_samples to skip must be at least 0, got {num_samples}")
        self._first = num_samples

    def __iter__(self) -> Iterator[SeededIndex]:
        """Yield this rank's indices for ever."""
        length = len(self.dataset)
        position = self.rank + self._first * self.world_size
        while True:
            epoch, start = divmod(position, length)
            order = _order(length, self.seed, epoch, self.shuffle)
            for place in range(start, length, self.world_size):
                yield SeededIndex(order[place], epoch=epoch, seed=self.seed)
                position += self.world_size

    def __len__(self) -> int:
        """Return the length of the dataset, as mmengine's InfiniteSampler does."""
        return len(self.dataset)


def _check(name: str, dataset: Sized, seed: int | None) -> int:
    if seed is None:
        raise ValueError(
            f"{name} needs a seed that all ranks share, got None. Set "
            "randomness=dict(seed=...) and leave diff_rank_seed off: draws differ between "
            "ranks without it"
        )
    if len(dataset) == 0:
        # Classes that are not those of the annotations leave no sample: the check names the file.
        check_annotations(dataset)
        raise ValueError(f"{name} needs at least one sample, got an empty dataset")
    return seed


def _order(length: int, seed: int, epoch: int, shuffle: bool) -> list[int]:
    if not shuffle:
        return list(range(length))
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, Stream.ORDER, epoch))
    return torch.randperm(length, generator=generator).tolist()
