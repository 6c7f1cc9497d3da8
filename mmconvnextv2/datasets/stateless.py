"""Samples that depend on (seed, epoch, index) alone: the index that carries them, the wrapper."""

from __future__ import annotations

from typing import Any

from mmengine.registry import DATASETS

from mmconvnextv2.seeding import Stream, derive_seed, seeded_cpu


class SeededIndex(int):
    """The index of a sample, which also says for which epoch and under which seed it is read.

    It is an integer: it indexes lists and arrays, and it equals the plain integer. It keeps epoch
    and seed through pickling, so a loader's worker process needs no state of its own. Arithmetic
    gives plain integers.

    Args:
        index: Position in the dataset.
        epoch: Number of the epoch, from 0.
        seed: The run's seed.
    """

    epoch: int
    seed: int

    def __new__(cls, index: int, epoch: int, seed: int) -> SeededIndex:
        """Create the integer and hang epoch and seed on it."""
        self = super().__new__(cls, index)
        self.epoch = epoch
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[type[SeededIndex], tuple[int, int, int]]:
        """Pickle and copy by the three numbers."""
        return type(self), (int(self), self.epoch, self.seed)

    def __repr__(self) -> str:
        """Show the three numbers."""
        return f"SeededIndex({int(self)}, epoch={self.epoch}, seed={self.seed})"


@DATASETS.register_module()
class StatelessDataset:
    """The outermost wrapper of a training dataset: it seeds every sample on its own.

    Reading sample `SeededIndex(index, epoch, seed)` seeds Python's, NumPy's and torch's global CPU
    generators from (seed, epoch, index), reads the sample from the inner dataset and puts the
    generators back. So a sample is the same for any number of workers, persistent or not, for any
    batch size and number of ranks, and after a resume.

    A plain integer, as validation samplers and people yield it, counts as epoch 0 of seed 0: such
    a sample is the same each time it is read. Training therefore needs `StatelessSampler`, and
    `StatelessSeedHook` refuses a training loader that has another one.

    Args:
        dataset: Config of the inner dataset, or the dataset itself. Wrappers are welcome.

    Raises:
        TypeError: `dataset` is neither a config nor has the interface of mmengine's datasets.
    """

    def __init__(self, dataset: dict[str, Any] | Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        needed = ("metainfo", "full_init", "get_data_info", "__len__", "__getitem__")
        missing = [name for name in needed if not hasattr(self.dataset, name)]
        if missing:
            raise TypeError(
                f"StatelessDataset wraps a dataset config or an mmengine dataset, got "
                f"{type(self.dataset).__name__}, which has no {', '.join(missing)}"
            )

    @property
    def metainfo(self) -> dict[str, Any]:
        """Meta information of the inner dataset."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Load the list of the inner dataset."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return what the inner dataset knows of a sample without reading it."""
        return self.dataset.get_data_info(int(index))

    def get_cat_ids(self, index: int) -> list[int]:
        """Return the category ids of a sample, where the inner dataset has them."""
        return self.dataset.get_cat_ids(int(index))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Read one sample under its own seed.

        Args:
            index: A `SeededIndex`, or a plain integer for epoch 0 of seed 0.

        Returns:
            What the inner dataset returns for `index`.
        """
        position = int(index)
        epoch, seed = (index.epoch, index.seed) if isinstance(index, SeededIndex) else (0, 0)
        # The inner dataset gets a plain integer: it may store the index in the sample, and
        # nothing downstream should depend on our type.
        with seeded_cpu(derive_seed(seed, Stream.SAMPLE, epoch, position)):
            return self.dataset[position]
