"""A run of a few numbers for tests of loops and hooks that resume; it keeps what it did."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, DefaultSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import LOOPS
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from mmengine.visualization import Visualizer

from mmconvnextv2.datasets import StatelessDataset, StatelessInfiniteSampler, StatelessSampler
from mmconvnextv2.engine import PortableCheckpointHook, StatelessSeedHook

LENGTH = 12
NUMBER = itertools.count()
VISUALIZER = Visualizer()  # a figure of matplotlib's for every run would take the longest


class Numbers(BaseDataset):
    """An index and a draw; it writes down what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []
        super().__init__(serialize_data=False)  # which would collect garbage each time

    def load_data_list(self):
        return [{"number": i} for i in range(LENGTH)]

    def prepare_data(self, idx):
        self.read.append(idx)
        return {"inputs": torch.tensor([idx, torch.rand(())])}


class Learner(BaseModel):
    """Fits the draws with draws of its own; it writes down what each step was."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.steps: list[tuple] = []

    def forward(self, inputs, mode="tensor"):
        batch = torch.stack(list(inputs))
        loss = ((batch / LENGTH * self.weight).sum(1) - torch.rand(len(batch))).square().mean()
        self.steps.append((tuple(batch[:, 0].int().tolist()), loss.item()))
        return {"loss": loss}


class Killed(Exception):
    """Stands for the end of the process."""


class Interrupt(Hook):
    """Ends the run, behind a step with a checkpoint or in a validation without one."""

    priority = "LOWEST"

    def __init__(self, after: int | None = None, in_validation: int | None = None) -> None:
        self.after = after
        self.in_validation = in_validation

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            runner.save_checkpoint(runner.work_dir, "cut.pth", by_epoch=False)
            raise Killed

    def before_val(self, runner):
        if runner.iter == self.in_validation:
            raise Killed


class Watch(Hook):
    """Writes down rates, places in the epoch, ends of epochs and validations."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.places: list[tuple[int, int]] = []
        self.epochs: list[int] = []
        self.validated: list[int] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])
        self.places.append((runner.epoch, batch_idx))

    def after_train_epoch(self, runner):
        self.epochs.append(runner.epoch)

    def after_val_epoch(self, runner, metrics=None):
        self.validated.append(runner.iter)


@LOOPS.register_module()
class ScriptedValLoop(BaseLoop):
    """Validation whose score was written down beforehand, by iteration; 1 where it was not."""

    def __init__(self, runner, dataloader, evaluator, scores):
        super().__init__(runner, dataloader)
        self.scores = scores

    def run(self):
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        score = self.scores.get(str(self.runner.iter), 1.0)
        self.runner.call_hook("after_val_epoch", metrics={"score": score})
        self.runner.call_hook("after_val")


SCHEDULERS = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=True, begin=0, end=1),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True, begin=1),
    dict(type="MultiStepLR", milestones=[2], by_epoch=True),
]
for scheduler in SCHEDULERS[:2]:
    scheduler["convert_to_iter_based"] = True


class Run:
    """A toy run: what it did is in `steps` (indices and loss), `read` and `watch`."""

    def __init__(
        self,
        work_dir: Path,
        *hooks: Hook,
        loop: dict[str, Any] | None = None,
        resume: str | None = None,
        scores: dict[str, float] | None = None,
        accumulate: int = 1,
        **loader: Any,
    ) -> None:
        self.model, self.watch = Learner(), Watch()
        loop = loop or dict(type="ResumableEpochLoop", max_epochs=3)
        epochs = "max_epochs" in loop
        sampler = StatelessSampler if epochs else StatelessInfiniteSampler
        train_loader = dict(
            batch_size=2,
            num_workers=0,
            dataset=StatelessDataset(Numbers()),
            sampler=dict(type=sampler),
        )
        train_loader.update(loader)
        schedulers = SCHEDULERS if epochs else None
        self.runner = Runner(
            model=self.model,
            work_dir=str(work_dir),
            experiment_name=f"{work_dir.name}-{next(NUMBER)}",
            train_dataloader={k: v for k, v in train_loader.items() if v is not None},
            train_cfg=loop,
            val_dataloader=dict(
                batch_size=2, dataset=Numbers(), sampler=dict(type=DefaultSampler, shuffle=False)
            ),
            val_cfg=dict(type="ScriptedValLoop", scores=scores or {}),
            val_evaluator=[],
            optim_wrapper=dict(
                optimizer=dict(type="SGD", lr=0.1, momentum=0.9), accumulative_counts=accumulate
            ),
            param_scheduler=schedulers,
            default_hooks=dict(
                logger=None,
                checkpoint=dict(
                    type="CheckpointHook", interval=1 if epochs else 4, by_epoch=epochs
                ),
            ),
            custom_hooks=[StatelessSeedHook(), PortableCheckpointHook(), self.watch, *hooks],
            randomness=dict(seed=5),
            load_from=resume and str(work_dir / resume),
            resume=resume is not None,
            visualizer=VISUALIZER,
            cfg=Config(dict(param_scheduler=schedulers)),
        )

    def go(self) -> Run:
        try:
            self.runner.train()
        finally:
            # Left to the garbage collector, each of them would be waited for.
            if (iterator := self.runner.train_dataloader._iterator) is not None:
                iterator._shutdown_workers()
        return self

    def cut(self) -> Run:
        with pytest.raises(Killed):
            self.go()
        return self

    @property
    def steps(self) -> list[tuple]:
        return self.model.steps

    @property
    def read(self) -> list[int]:
        return self.runner.train_dataloader.dataset.dataset.read


def log_of(work_dir: Path) -> str:
    return "".join(path.read_text() for path in sorted(work_dir.glob("*/*.log")))


def assert_equal_to(whole: Run, first: Run, rest: Run, done: int) -> None:
    assert first.steps[:done] + rest.steps == whole.steps
    assert first.watch.rates[:done] + rest.watch.rates == whole.watch.rates
    assert first.watch.places[:done] + rest.watch.places == whole.watch.places
    assert torch.equal(rest.model.weight, whole.model.weight)
    assert rest.runner.iter == rest.runner.max_iters == whole.runner.max_iters
