"""A table of configs and seeds that is filled cell by cell, and survives being stopped.

A cell is one training run. Its folder holds ``cell.json``: everything the result depends on (the
config, the code, the files it starts from), and the metrics as soon as it is finished. Whoever
starts the same study again gets the finished cells from there; a cell that was made from anything
else is refused, never mixed in.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

import mmconvnextv2
from mmconvnextv2.apis.launch import train
from mmconvnextv2.checkpoint import sha256_of
from mmconvnextv2.files import write_atomically

Metrics = dict[str, float]
"""Value by name."""

Results = dict[str, dict[int, Metrics]]
"""Metrics by name of the arm and by seed."""

NEUTRAL_KEYS = frozenset(
    {"experiment_name", "num_workers", "persistent_workers", "pin_memory", "resume", "work_dir"}
)
"""Settings on which no result depends."""

CODE_DISTRIBUTIONS = (
    "torch",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmpretrain",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
    "mmengine",
    "mmcv",
    "mmpretrain",
    "mmdet",
    "mmsegmentation",
)
"""Packages whose version counts as code; of OpenMMLab's two sets one is installed."""

_NAME = re.compile(r"[\w.+-]+")
_NAMED_AT_MOST = 5


class StudyMismatchError(ValueError):
    """A finished or begun cell that was made from something else than what is asked for."""


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Args:
        name: unique in the study; letters, digits and ``._+-``, since it names a folder.
        config: complete config of a run with a validation; the study sets seed and work_dir.
        inputs: files and folders that the result depends on besides the config. A file counts by
            its content, a folder by the names and sizes of its files.
    """

    name: str
    config: Config
    inputs: tuple[Path, ...] = ()


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
    compared. A cell that was interrupted goes on from its newest checkpoint, if it has one.

    Args:
        arms: the rows.
        seeds: the columns.
        work_dir: folder of the study; a cell's is ``<arm>/seed<seed>`` in it.
        run: trains as a config says and returns metrics; `train_and_validate` when None.

    Returns:
        Metrics of all cells.

    Raises:
        StudyMismatchError: a cell is there already and was made from something else. Nothing is
            trained then.
        ValueError: arms or seeds are missing, not unique, or a name is no folder's.
        FileNotFoundError: an input is not there.
    """
    _check_table(arms, seeds)
    run = run or train_and_validate
    work_dir = Path(work_dir)
    code = code_identity()
    inputs = {arm.name: {str(path): identity_of(path) for path in arm.inputs} for arm in arms}
    cells = []
    for seed in seeds:
        for arm in arms:
            folder = work_dir / arm.name / f"seed{seed}"
            cfg = _cell_config(arm.config, seed, folder)
            cell = _Cell(arm.name, seed, folder, cfg, _identity(cfg, seed, code, inputs[arm.name]))
            cell.read()  # a mismatch stops the study before anything is trained
            cells.append(cell)

    results: Results = {arm.name: {} for arm in arms}
    for number, cell in enumerate(cells, start=1):
        metrics = cell.read()
        done = f"[{number}/{len(cells)}] {cell.arm}, seed {cell.seed}"
        if metrics is None:
            print(f"{done}: training", flush=True)
            cell.write(None)
            metrics = run(cell.cfg)
            cell.write(metrics)
        else:
            print(f"{done}: finished before", flush=True)
        results[cell.arm][cell.seed] = metrics
        _write_table(results, work_dir)
    return results


def train_and_validate(cfg: Config) -> Metrics:
    """Train, and return what the last validation logged.

    Raises:
        ValueError: the config validates nothing.
    """
    if cfg.get("val_evaluator") is None:
        raise ValueError("a study compares metrics, and the config has no val_evaluator")
    runner = train(cfg, resume=True)
    if runner.cfg.resume:  # the history in its checkpoint may end with an earlier validation
        runner.val()
    return _last_validation(runner)


def _last_validation(runner: Runner) -> Metrics:
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


def markdown_table(results: Results, metrics: Sequence[str]) -> str:
    """The table as Markdown: an arm a row, mean ± sample standard deviation of each metric."""
    lines = [f"| | seeds | {' | '.join(metrics)} |", "|---|---:|" + "---:|" * len(metrics)]
    columns = {metric: summarize(results, metric) for metric in metrics}
    for arm, cells in results.items():
        texts = [_mean_and_std(columns[metric][arm]) for metric in metrics]
        lines.append(f"| {arm} | {len(cells)} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def code_identity() -> dict[str, str]:
    """What the code of a run is: a hash of this package's sources, and versions of what it uses."""
    package = Path(mmconvnextv2.__file__).parent
    content = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".cpp")):
        content.update(f"{path.relative_to(package).as_posix()}\0".encode())
        content.update(path.read_bytes() + b"\0")
    versions = {"mmconvnextv2": content.hexdigest()}
    for name in CODE_DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def identity_of(path: str | os.PathLike[str]) -> str:
    """A hash of a file's content, or of the names and sizes of the files of a folder.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(path)
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class _Cell:
    arm: str
    seed: int
    folder: Path
    cfg: Config
    identity: dict[str, str]

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


def _cell_config(cfg: Config, seed: int, folder: Path) -> Config:
    cfg = copy.deepcopy(cfg)
    cfg.randomness = dict(cfg.get("randomness") or {}, seed=seed)
    cfg.work_dir = str(folder)
    # Where there is no checkpoint yet, the run starts at the beginning.
    cfg.resume = True
    # mmengine adds the second at which a run begins, and short cells share it.
    cfg.experiment_name = f"{folder.parent.resolve().as_posix()}_{seed}"
    return cfg


def _identity(
    cfg: Config, seed: int, code: Mapping[str, str], inputs: Mapping[str, str]
) -> dict[str, str]:
    settings = {f"config {key}": value for key, value in _leaves(cfg.to_dict())}
    return {
        **{f"code {name}": value for name, value in code.items()},
        **{f"content of {path}": value for path, value in inputs.items()},
        **settings,
        "seed": str(seed),
    }


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of nested dictionaries and lists, without those of no effect."""
    if isinstance(node, Mapping) and node:
        children = [(str(k), v) for k, v in node.items() if k not in NEUTRAL_KEYS]
    elif isinstance(node, list | tuple) and any(isinstance(v, Mapping) for v in node):
        children = [(str(i), v) for i, v in enumerate(node)]
    else:
        yield prefix, _text(node)
        return
    for key, value in children:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else key)


def _text(value: Any) -> str:
    """A value as text that is the same in the next process: no addresses, no order of sets."""
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return json.dumps(value, default=repr)


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
