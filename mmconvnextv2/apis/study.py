"""A table of configs and seeds that is filled cell by cell, and survives being stopped.

A cell is one training run. Its folder holds ``cell.json``: everything the result depends on (the
config, the code, the files it starts from), and the metrics as soon as it is finished. Whoever
starts the same study again gets the finished cells from there; a cell that was made from anything
else is refused, never mixed in.

A cell may start from the weights of another one of the same seed. Then it is made from all that
the other is made from.
"""

from __future__ import annotations

import copy
import fcntl
import gc
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from mmengine.config import Config
from mmengine.runner import Runner

from mmconvnextv2.apis.launch import last_checkpoint, train
from mmconvnextv2.apis.study_identity import code_identity, config_identity, digest, identity_of
from mmconvnextv2.checkpoint import read_checkpoint, write_checkpoint
from mmconvnextv2.checkpoint.validity import run_checkpoints
from mmconvnextv2.engine.hooks.computing_time import COMPUTING_TIME, ComputingTimeHook
from mmconvnextv2.files import write_atomically

Metrics = dict[str, float]
"""Value by name."""

Results = dict[str, dict[int, Metrics]]
"""Metrics by name of the arm and by seed."""

WEIGHTS = "weights.pth"
"""What a cell leaves in its folder for those that start from it."""

_NAME = re.compile(r"[\w.+-]+")
_NAMED_AT_MOST = 5
_LAST_STEPS = 50  # over which the loss of a run is averaged


class StudyMismatchError(ValueError):
    """A finished or begun cell that was made from something else than what is asked for."""


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Args:
        name: unique in the study; letters, digits and ``._+-``, since it names a folder.
        config: complete config of a run with a validation; the study sets seed and work_dir.
        inputs: files and folders that the result depends on besides the config. A file counts by
            its content, a folder by its annotations and the names and sizes of its other files.
        start: name of an earlier arm, whose weights of the same seed the backbone starts from. The
            study sets ``model.backbone.init_cfg.checkpoint``, which the config has to have.
    """

    name: str
    config: Config
    inputs: tuple[Path, ...] = ()
    start: str | None = None


@dataclass(frozen=True)
class Summary:
    """One metric of an arm over the seeds.

    Attributes:
        values: the single values, in the order of the seeds.
        mean: their mean.
        std: their sample standard deviation; nan for one seed.
    """

    values: tuple[float, ...]
    mean: float
    std: float


def run_study(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    work_dir: str | os.PathLike[str],
    run: Callable[[Config], Metrics] | None = None,
) -> Results:
    """Fill the table, and write it to ``study.json`` and ``study.md``.

    Seeds are gone through one by one with all arms, so that an early stop leaves rows that can be
    compared. A cell that was interrupted goes on from its newest checkpoint, if it has one. A cell
    that another process is training is left to it, and read once it is finished.

    Args:
        arms: the rows.
        seeds: the columns.
        work_dir: folder of the study; a cell's is ``<arm>/seed<seed>`` in it.
        run: trains as a config says and returns metrics; `train_and_validate` when None. For arms
            that others start from it has to leave `WEIGHTS` in the config's work_dir.

    Returns:
        Metrics of all cells.

    Raises:
        StudyMismatchError: a cell is there already and was made from something else. Nothing is
            trained then.
        ValueError: arms or seeds are missing, not unique, a name is no folder's, or an arm starts
            from one that does not come earlier.
        FileNotFoundError: an input is not there, or the weights of a finished cell are gone.
    """
    return fill_cells(
        arms, seeds, work_dir, run, lambda results: _write_table(results, Path(work_dir))
    )


def fill_cells(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    work_dir: str | os.PathLike[str],
    run: Callable[[Config], Metrics] | None,
    report: Callable[[Results], None],
) -> Results:
    """Do what `run_study` does, but hand the results so far to `report` after each cell."""
    run = run or train_and_validate
    cells = check_cells(arms, seeds, work_dir)  # nothing is trained after a mismatch
    results: Results = {arm.name: {} for arm in arms}
    left = {f"[{i}/{len(cells)}] {c.arm}, seed {c.seed}": c for i, c in enumerate(cells, start=1)}
    while left:
        ready = {
            name: cell
            for name, cell in left.items()
            if cell.start is None or cell.seed in results[cell.start.arm]
        }
        with _alone(ready) as name:
            cell = left.pop(name)
            metrics = cell.read()
            if metrics is None:
                print(f"{name}: training", flush=True)
                cfg = cell.complete_config()
                cell.write(None)
                metrics = run(cfg)
                cell.write(metrics)
            else:
                print(f"{name}: finished before", flush=True)
        found = {**results[cell.arm], cell.seed: metrics}
        results[cell.arm] = {seed: found[seed] for seed in seeds if seed in found}
        report(results)
    return results


@contextmanager
def _alone(cells: Mapping[str, _Cell]) -> Iterator[str]:
    """Hold the first cell that no other process holds, and give its name; wait where all are held.

    So studies that share cells, or several processes of one study, can run side by side.
    """
    for name, cell in cells.items():
        try:
            lock = _lock(cell.folder, wait=False)
        except BlockingIOError:
            continue
        with lock:
            yield name
        return
    name, cell = next(iter(cells.items()))
    print(f"{name}: another process is training it; waiting", flush=True)
    with _lock(cell.folder, wait=True):
        yield name


def _lock(folder: Path, wait: bool) -> TextIO:
    """The lock of a cell; the system frees it when its process dies.

    Raises:
        BlockingIOError: it is held, and we do not wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "cell.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise
    return lock


def check_cells(
    arms: Sequence[Arm], seeds: Sequence[int], work_dir: str | os.PathLike[str]
) -> list[_Cell]:
    """Refuse what `run_study` refuses before it trains, with the same errors.

    Returns:
        All cells, in the order in which they are trained.
    """
    cells = _plan(arms, seeds, Path(work_dir))
    for cell in cells:
        cell.read()
    return cells


State = Literal["new", "begun", "finished", "made from something else"]


def cell_states(
    arms: Sequence[Arm], seeds: Sequence[int], work_dir: str | os.PathLike[str]
) -> dict[tuple[str, int], State]:
    """What is there of each cell, by arm and seed, in the order of training; nothing is changed.

    Inputs need not be there yet.

    Raises:
        ValueError: as `run_study`.
    """
    cells = _plan(arms, seeds, Path(work_dir), absent="not there")
    return {(cell.arm, cell.seed): cell.state() for cell in cells}


def _plan(
    arms: Sequence[Arm], seeds: Sequence[int], work_dir: Path, absent: str | None = None
) -> list[_Cell]:
    """All cells, in the order in which they are trained.

    Raises:
        FileNotFoundError: an input is not there, and `absent` is no text that stands for it.
    """
    _check_table(arms, seeds)
    code = code_identity()
    content = {
        path: identity_of(path) if absent is None or path.exists() else absent
        for path in {p for arm in arms for p in arm.inputs}
    }
    cells: dict[tuple[str, int], _Cell] = {}
    for seed in seeds:
        for arm in arms:
            folder = work_dir / arm.name / f"seed{seed}"
            cfg = _cell_config(arm.config, seed, folder)
            start = None if arm.start is None else cells[arm.start, seed]
            identity = {
                **{f"code {name}": value for name, value in code.items()},
                **{f"content of {path}": content[path] for path in arm.inputs},
                **config_identity(cfg),
                "seed": str(seed),
            }
            if start is not None:
                identity[f"start from {start.arm}"] = digest(start.identity)
            cells[arm.name, seed] = _Cell(arm.name, seed, folder, cfg, identity, start)
    return list(cells.values())


def train_and_validate(cfg: Config) -> Metrics:
    """Train, and return what the last validation logged.

    Raises:
        ValueError: the config validates nothing.
    """
    if cfg.get("val_evaluator") is None:
        raise ValueError("a study compares metrics, and the config has no val_evaluator")
    return _last_validation(train(cfg, resume=True))


def train_and_keep_weights(cfg: Config) -> Metrics:
    """Train with or without validation, and leave the weights alone in place of the checkpoints.

    Returns:
        The metrics of `train_and_validate` where the config validates; ``train_loss``, the mean of
        the last 50 steps; ``seconds``, the wall-clock time of all training steps, data included;
        ``computing_seconds``, as `ComputingTimeHook` measures them.
    """
    cfg = copy.deepcopy(cfg)
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type=ComputingTimeHook.__name__)]
    runner = train(cfg, resume=True)
    metrics = _last_validation(runner) if cfg.get("val_evaluator") is not None else {}
    scalars = runner.message_hub.log_scalars
    metrics["train_loss"] = float(scalars["train/loss"].mean(_LAST_STEPS))
    metrics["seconds"] = float(scalars["train/time"].data[0].sum())
    metrics["computing_seconds"] = float(scalars[COMPUTING_TIME].data[0].sum())
    state_dict = read_checkpoint(last_checkpoint(runner))
    write_checkpoint(Path(cfg.work_dir) / WEIGHTS, state_dict)
    del runner
    gc.collect()  # with the Runner go the loader's processes
    # Last, as a run that is killed without its checkpoints begins anew. mmengine's pointer first,
    # which must lead somewhere.
    pointer = Path(cfg.work_dir) / "last_checkpoint"
    for path in (pointer, *run_checkpoints(cfg.work_dir)):
        path.unlink(missing_ok=True)
    return metrics


def _last_validation(runner: Runner) -> Metrics:
    if runner.cfg.resume:  # the history in its checkpoint may end with an earlier validation
        runner.val()
    return {
        name.removeprefix("val/"): float(buffer.current())
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.startswith("val/") and name not in ("val/time", "val/data_time")
    }


def summarize(results: Results, metric: str) -> dict[str, Summary]:
    """Mean and spread of one metric over the seeds, by arm.

    Raises:
        ValueError: a cell has no such metric.
    """
    summaries = {}
    for arm, cells in results.items():
        for seed, metrics in cells.items():
            if metric not in metrics:
                raise ValueError(
                    f"{arm}, seed {seed} has no metric {metric!r}: it has {', '.join(metrics)}"
                )
        values = tuple(metrics[metric] for metrics in cells.values())
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        summaries[arm] = Summary(values, statistics.fmean(values), std)
    return summaries


def markdown_table(
    results: Results,
    metrics: Sequence[str] | Mapping[str, str],
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The table as Markdown: an arm a row, mean ± sample standard deviation of each metric.

    Args:
        results: metrics of all cells.
        metrics: names of those to show, or their headings by name.
        more: further columns by heading, each a text by arm.
    """
    headings = metrics if isinstance(metrics, Mapping) else {name: name for name in metrics}
    more = more or {}
    titles = [*headings.values(), *more]
    lines = [f"| | seeds | {' | '.join(titles)} |", "|---|---:|" + "---:|" * len(titles)]
    columns = {metric: summarize(results, metric) for metric in headings}
    for arm, cells in results.items():
        texts = [_mean_and_std(columns[metric][arm]) for metric in headings]
        texts += [column.get(arm, "") for column in more.values()]
        lines.append(f"| {arm} | {len(cells)} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Cell:
    arm: str
    seed: int
    folder: Path
    cfg: Config
    identity: dict[str, str]
    start: _Cell | None

    @property
    def path(self) -> Path:
        return self.folder / "cell.json"

    def read(self) -> Metrics | None:
        """Metrics of the finished cell; None for one that is not finished or not begun."""
        if not self.path.is_file():
            return None
        content = json.loads(self.path.read_text(encoding="utf-8"))
        theirs = content["made_from"]
        differing = [
            k for k in {**theirs, **self.identity} if theirs.get(k) != self.identity.get(k)
        ]
        if differing:
            more = len(differing) - _NAMED_AT_MOST
            named = "; ".join(
                f"{k}: {theirs.get(k, 'not set')} there, {self.identity.get(k, 'not set')} now"
                for k in differing[:_NAMED_AT_MOST]
            )
            raise StudyMismatchError(
                f"{self.folder} was made from something else ({named}"
                + (f"; and {more} more" if more > 0 else "")
                + "): choose another work directory, or remove this folder to train the cell again"
            )
        return content["metrics"]

    def state(self) -> State:
        """What is there, as `cell_states` says it."""
        try:
            metrics = self.read()
        except StudyMismatchError:
            return "made from something else"
        return "new" if not self.path.is_file() else "begun" if metrics is None else "finished"

    def complete_config(self) -> Config:
        """The config with the weights to start from, which have to be there by now."""
        cfg = copy.deepcopy(self.cfg)
        if self.start is not None:
            weights = self.start.folder / WEIGHTS
            if not weights.is_file():
                raise FileNotFoundError(
                    f"{self.arm} starts from {weights}, and that is not there: remove "
                    f"{self.start.folder} to train it again"
                )
            cfg.model.backbone.init_cfg.checkpoint = str(weights)
        return cfg

    def write(self, metrics: Metrics | None) -> None:
        content = dict(made_from=self.identity, metrics=metrics)
        write_atomically(self.path, (json.dumps(content, indent=2) + "\n").encode())


def _check_table(arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    names = [arm.name for arm in arms]
    if not arms or not seeds:
        raise ValueError(f"a study needs an arm and a seed, got arms {names}, seeds {list(seeds)}")
    for what, values in (("names of arms", names), ("seeds", list(seeds))):
        if len(set(values)) < len(values):
            raise ValueError(f"{what} must differ, got {values}")
    for name in names:
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise ValueError(
                f"the name of an arm has letters, digits and ._+- alone, since it names a folder: "
                f"got {name!r}"
            )
    for number, arm in enumerate(arms):
        if arm.start is not None and arm.start not in names[:number]:
            raise ValueError(
                f"{arm.name} starts from {arm.start!r}, which is none of the arms before it: "
                f"{', '.join(names[:number])}"
            )


def _cell_config(cfg: Config, seed: int, folder: Path) -> Config:
    cfg = copy.deepcopy(cfg)
    cfg.randomness = dict(cfg.get("randomness") or {}, seed=seed)
    cfg.work_dir = str(folder)
    # Where there is no checkpoint yet, the run starts at the beginning.
    cfg.resume = True
    # mmengine adds the second at which a run begins, and short cells share it.
    cfg.experiment_name = f"{folder.parent.resolve().as_posix()}_{seed}"
    return cfg


def _mean_and_std(summary: Summary) -> str:
    if math.isnan(summary.std):
        return f"{summary.mean:.4g}"
    return f"{summary.mean:.4g} ± {summary.std:.2g}"


def _write_table(results: Results, work_dir: Path) -> None:
    begun = {arm: cells for arm, cells in results.items() if cells}
    shared = set.intersection(*(set(m) for cells in begun.values() for m in cells.values()))
    first = next(iter(next(iter(begun.values())).values()))
    metrics = [name for name in first if name in shared]
    content = {
        arm: dict(
            seeds={str(seed): values for seed, values in cells.items()},
            mean={m: summarize({arm: cells}, m)[arm].mean for m in metrics},
            std={m: _finite(summarize({arm: cells}, m)[arm].std) for m in metrics},
        )
        for arm, cells in begun.items()
    }
    write_atomically(work_dir / "study.json", (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(work_dir / "study.md", markdown_table(begun, metrics).encode())


def _finite(value: float) -> float | None:
    """A value as JSON takes it: it has no nan."""
    return value if math.isfinite(value) else None
