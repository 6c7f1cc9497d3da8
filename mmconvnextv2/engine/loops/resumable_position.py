"""Where in its data a run stands: written into every checkpoint, found again on a resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mmengine.dist import get_world_size
from mmengine.logging import MessageHub
from torch.utils.data import BatchSampler, DataLoader

_KEY = "data_position"


@dataclass(frozen=True)
class DataPosition:
    """The last moment at which a run began to take batches, and the batches it takes.

    That is the start of an epoch, or the place within it where a resumed run went on. Counting
    the iterations since then gives the position at any later one, so that it has to be noted
    only then. The Runner's message hub, which every checkpoint holds, carries it.

    Attributes:
        epoch: the epoch, from 0.
        iteration: iterations of the run until that moment.
        samples: samples of the epoch that all processes together had had by then.
        batch_size: samples of a batch of one process.
        world_size: number of processes.
        length: samples of the data set.
        batches: batches of one process in a whole epoch.
    """

    epoch: int
    iteration: int
    samples: int
    batch_size: int
    world_size: int
    length: int
    batches: int

    @classmethod
    def of_loader(
        cls, loader: DataLoader, epoch: int, iteration: int, samples: int = 0
    ) -> DataPosition:
        """Describe a loader and a moment.

        Raises:
            ValueError: the loader's batches have no stated size.
        """
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        if not size:
            raise ValueError(
                "a resumable loop counts samples by the batch, and the batch sampler "
                f"{type(loader.batch_sampler).__name__} states no batch_size: use mmengine's "
                "EpochBasedTrainLoop or IterBasedTrainLoop, which resume at the start of an epoch"
            )
        dataset: Any = loader.dataset
        return cls(
            epoch, iteration, samples, size, get_world_size(), len(dataset), batches=len(loader)
        )

    @classmethod
    def load(cls, hub: MessageHub) -> DataPosition | None:
        """Read what a checkpoint has brought; None where it was written by another loop."""
        noted = hub.get_info(_KEY)
        return None if noted is None else cls(**noted)

    def save(self, hub: MessageHub) -> None:
        """Note it for all checkpoints to come."""
        hub.update_info(_KEY, asdict(self))

    @property
    def samples_per_iteration(self) -> int:
        """Samples of an iteration of all processes together."""
        return self.batch_size * self.world_size

    def samples_at(self, iteration: int) -> int:
        """Samples of the epoch that are done at a later iteration."""
        return self.samples + (iteration - self.iteration) * self.samples_per_iteration

    def changes_since(self, before: DataPosition) -> list[str]:
        """Say what a resumed run does differently from the one that wrote the checkpoint."""
        notes = []
        if (self.world_size, self.batch_size) != (before.world_size, before.batch_size):
            notes.append(
                f"resumed with {self.world_size} (processes) x {self.batch_size} (samples a "
                f"batch), the checkpoint had {before.world_size} x {before.batch_size}: the data "
                "go on where they were, but what a step draws depends on its process, so the "
                "losses will not be those of the uninterrupted run"
            )
        if self.length != before.length:
            notes.append(
                f"resumed with {self.length:,} samples, the checkpoint had {before.length:,}: "
                "their order is another one, so samples may come twice or not at all in this epoch"
            )
        return notes


def startable_sampler(loader: DataLoader) -> Any | None:
    """Return the loader's sampler where it can start within an epoch without loading anything.

    None stands for a sampler of another project, or a batch sampler that does not take samples
    one after the other.
    """
    if type(loader.batch_sampler) is not BatchSampler:
        return None
    sampler = loader.batch_sampler.sampler
    return sampler if hasattr(sampler, "start_at") else None


def batches_from(loader: DataLoader, samples: int) -> int:
    """Count the batches of an epoch that starts behind some samples.

    Args:
        loader: a loader whose sampler is startable and ends.
        samples: samples of the epoch that all processes together have had.
    """
    sampler, batches = startable_sampler(loader), loader.batch_sampler
    assert sampler is not None and isinstance(batches, BatchSampler)
    own = sampler.count_from(samples)
    return own // batches.batch_size if batches.drop_last else -(-own // batches.batch_size)
