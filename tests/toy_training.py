"""A training run of a second for tests of hooks: a toy model on numbered vectors that can go bad.

Everything around the model is the project's own: sampler, seeds, loop, checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

import mmconvnextv2.datasets
import mmconvnextv2.engine  # noqa: F401  (registers)

WIDTH = 4


class Spot(nn.Module):
    """Passes its input on, unless a flag is 0: then the output or its gradient is not finite."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x_NC: Tensor, flag_N1: Tensor) -> Tensor:
        if self.kind == "output":
            return x_NC / flag_N1
        # 0 where the flag is 0, and there its slope is 0 x infinity.
        return (x_NC * x_NC * flag_N1).sqrt()


@MODELS.register_module(force=True)
class NumberModel(BaseModel):
    """Dropout, linear, the bad spot, BatchNorm, linear; `draws` notes a random number a pass."""

    def __init__(self, kind: str = "output", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.dropout = nn.Dropout(0.2)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.spot = Spot(kind)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.last = nn.Linear(WIDTH, 1)
        self.draws: list[float] = []

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        x_NC = torch.stack(list(inputs))
        self.draws.append(torch.rand(()).item())
        h_NC = self.first(self.dropout(x_NC[:, :WIDTH]))
        y_N1 = self.last(self.norm(self.spot(h_NC, x_NC[:, WIDTH:])))
        return dict(loss=((y_N1 - 1) ** 2).mean()) if mode == "loss" else [y_N1]


@DATASETS.register_module(force=True)
class NumberedVectors(BaseDataset):
    """`count` random vectors named 0.png, 1.png and so on; those in `bad` have flag 0."""

    def __init__(self, count: int, bad: Sequence[int] = ()) -> None:
        self.count = count
        self.bad = set(bad)
        super().__init__()

    def load_data_list(self) -> list[dict[str, Any]]:
        numbers = torch.randn(self.count, WIDTH, generator=torch.Generator().manual_seed(0))
        return [
            dict(img_path=f"{i}.png", numbers=row.tolist(), flag=float(i not in self.bad))
            for i, row in enumerate(numbers)
        ]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        info = self.get_data_info(idx)
        numbers = torch.tensor(info["numbers"]) + 0.1 * torch.rand(WIDTH)
        sample = BaseDataElement(metainfo=dict(img_path=info["img_path"]))
        return dict(inputs=torch.cat([numbers, torch.tensor([info["flag"]])]), data_samples=sample)


class Trace(Hook):
    """Notes losses, images and, at the end of each step, weights."""

    # Before FiniteHook can raise at the end of an iteration, and before checkpoints are written.
    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.images: dict[int, list[str]] = {}
        self.weights: dict[int, dict[str, Tensor]] = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        samples = data_batch["data_samples"]
        self.images[runner.iter + 1] = [sample.img_path for sample in samples]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses[runner.iter + 1] = outputs["loss"].item()
        self.weights[runner.iter + 1] = copy_state(runner.model)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def make_runner(
    work_dir: Path,
    *hooks: Any,
    bad: Sequence[int] = (),
    count: int = 16,
    epochs: int = 2,
    workers: int = 0,
    optim_wrapper: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    shuffle: bool = True,
    **changes: Any,
) -> Runner:
    """A Runner of 4 images a batch; `changes` are arguments of the Runner."""
    settings: dict[str, Any] = dict(
        model=dict(type="NumberModel", **(model or {})),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dict(
                type="StatelessDataset",
                dataset=dict(type="NumberedVectors", count=count, bad=list(bad)),
            ),
            batch_size=4,
            num_workers=workers,
            sampler=dict(type="StatelessSampler", shuffle=shuffle),
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=dict(type="ResumableEpochLoop", max_epochs=epochs),
        optim_wrapper=optim_wrapper
        or dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=0.01)),
        default_hooks=dict(checkpoint=dict(type="DurableCheckpointHook", interval=100)),
        custom_hooks=[
            dict(type="StatelessSeedHook"),
            dict(type="PortableCheckpointHook"),
            *hooks,
        ],
        randomness=dict(seed=0),
        default_scope="mmengine",
        experiment_name=f"toy-{work_dir.name}-{id(hooks)}",
    )
    settings.update(changes)
    return Runner(**settings)


def log_of(work_dir: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(work_dir.glob("*/*.log")))
