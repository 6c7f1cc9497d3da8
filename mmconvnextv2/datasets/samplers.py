"""The sampler whose indices carry seed and epoch to the dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS

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
        ValueError: `seed` is None or `dataset` is empty.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int | None = None,
        shuffle: bool = True,
        round_up: bool = True,
    ) -> None:
        if seed is None:
            raise ValueError(
                "StatelessSampler needs a seed that all ranks share, got None. Set "
                "randomness=dict(seed=...) and leave diff_rank_seed off: draws differ between "
                "ranks without it"
            )
        if len(dataset) == 0:
            raise ValueError("StatelessSampler needs at least one sample, got an empty dataset")
        super().__init__(dataset, shuffle=shuffle, seed=seed, round_up=round_up)

    def __iter__(self) -> Iterator[SeededIndex]:
        """Yield this rank's indices of the current epoch."""
        order = self._order()
        # Modulo repeats the order from its start where rounding up asks for more than it has.
        for position in range(self.rank, self.total_size, self.world_size):
            yield SeededIndex(order[position % len(order)], epoch=self.epoch, seed=self.seed)

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.dataset)))
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.seed, Stream.ORDER, self.epoch))
        return torch.randperm(len(self.dataset), generator=generator).tolist()
