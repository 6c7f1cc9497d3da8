"""The samplers whose indices carry seed and epoch to the dataset: one ends, one never does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized

import numpy as np
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
    `StatelessDataset`. A resumed loop calls `start_at`.

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
        self._start = (0, 0)

    def start_at(self, epoch: int, position: int) -> None:
        """Let one epoch start within its order; all others stay whole.

        Args:
            epoch: the epoch that was interrupted.
            position: samples of it that all ranks together, however many they were, have had.

        Raises:
            ValueError: an argument is negative.
        """
        self._start = _check_start(epoch, position)

    def count_from(self, position: int) -> int:
        """Return how many samples this rank gets of an epoch that starts at a position."""
        return len(self._positions(position))

    def _positions(self, start: int) -> range:
        left = max(0, len(self.dataset) - start)
        if self.round_up:
            left = math.ceil(left / self.world_size) * self.world_size
        return range(start + self.rank, start + left, self.world_size)

    def __iter__(self) -> Iterator[SeededIndex]:
        """Yield this rank's indices of the current epoch."""
        order = _order(len(self.dataset), self.seed, self.epoch, self.shuffle)
        epoch, position = self._start
        # Modulo repeats the order from its start where rounding up asks for more than it has.
        for place in self._positions(position if self.epoch == epoch else 0):
            yield SeededIndex(order[place % len(order)], epoch=self.epoch, seed=self.seed)


@DATA_SAMPLERS.register_module()
class StatelessInfiniteSampler(Sampler[SeededIndex]):
    """One epoch after the other without end, for loops that count iterations.

    The epochs of `StatelessSampler` are strung together, and ranks take every world-size-th index
    of that sequence; so an epoch may begin within a batch. What stands at a position depends on
    (seed, position) alone: iterating anew starts at the same place again. A resumed loop calls
    `start_at`, or, where it is one of mmengine's own, `skip`, or draws the batches it has already
    seen and throws them away: all of them lead to where the uninterrupted run would be.

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
        self._start = 0

    def start_at(self, epoch: int, position: int) -> None:
        """Let every iteration start later.

        Args:
            epoch: epochs to leave out.
            position: samples to leave out behind them, counted over all ranks.

        Raises:
            ValueError: an argument is negative.
        """
        epoch, position = _check_start(epoch, position)
        self._start = epoch * len(self.dataset) + position

    def skip(self, num_samples: int) -> None:
        """Let every iteration start later; maintained mmengine calls this when a run resumes.

        Args:
            num_samples: Samples of this rank to leave out, counted from the very first one.

        Raises:
            ValueError: `num_samples` is negative.
        """
        if num_samples < 0:
            raise ValueError(f"num_samples to skip must be at least 0, got {num_samples}")
        self._start = num_samples * self.world_size

    def __iter__(self) -> Iterator[SeededIndex]:
        """Yield this rank's indices for ever."""
        length = len(self.dataset)
        position = self.rank + self._start
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


def _check_start(epoch: int, position: int) -> tuple[int, int]:
    if epoch < 0 or position < 0:
        raise ValueError(f"an epoch and a position in it are at least 0, got {epoch}, {position}")
    return epoch, position


def _order(length: int, seed: int, epoch: int, shuffle: bool) -> range | np.ndarray:
    if not shuffle:
        return range(length)
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, Stream.ORDER, epoch))
    # Not a list: 14 million Python integers take half a gigabyte, these numbers a fifth of that.
    return torch.randperm(length, generator=generator).numpy()
