"""Reads a study from a file of configs/studies/: what is trained from what, which tables it fills.

A study names its cells, each a config of this project with a length and a few changed settings, and
puts them into tables. Studies that share a base share its cells, which are trained once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mmengine.config import Config

from mmconvnextv2.apis.cfg_options import apply_options
from mmconvnextv2.apis.configs import config_path
from mmconvnextv2.apis.schedules import set_length
from mmconvnextv2.apis.study import Arm

T = TypeVar("T")

Side = str | Sequence[str]
"""Label of a row; or of two, for the first minus the second, seed by seed."""


class StudyError(ValueError):
    """A study whose file does not fit together."""


@dataclass(frozen=True)
class Cell:
    """What one training run is, for any seed.

    Attributes:
        config: path below ``configs/``.
        steps: optimizer steps.
        seconds: about how long it takes on the machine that the study was made for.
        options: settings that differ from the config, by dotted key.
        start: name of the cell whose backbone it starts from; None starts at random.
    """

    config: str
    steps: int
    seconds: int
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: what the reader sees.
        cell: whose metrics they are.
        paper: figure of the paper, in the unit that the table names.
        x: where the row stands on the x axis.
        series: name of its curve there.
    """

    label: str
    cell: str
    paper: float | None = None
    x: float | None = None
    series: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement that holds if one side is better than the other beyond the spread of the seeds.

    Attributes:
        says: the statement.
        better: the side that is better if it holds.
        than: the other side.
    """

    says: str
    better: Side
    than: Side

    def labels(self) -> list[str]:
        """Labels of all rows that it speaks of."""
        sides = (self.better, self.than)
        return [text for side in sides for text in ([side] if isinstance(side, str) else side)]


@dataclass(frozen=True)
class Table:
    """Rows that are compared.

    Attributes:
        name: of its files.
        title: its heading.
        metrics: heading of each column by the metric's name. The first one decides, and higher is
            better. ``start.train_loss`` is the metric ``train_loss`` of the cell that a row starts
            from.
        rows: the lines.
        claims: what the table is to show.
        paper: heading of the column with the paper's figures.
        x: what the x axis is; a table without one is drawn as dots, a line each.
    """

    name: str
    title: str
    metrics: Mapping[str, str]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    paper: str | None = None
    x: str | None = None


@dataclass(frozen=True)
class Curves:
    """Feature cosine distance by layer, of some cells.

    Attributes:
        cells: cell by label.
        images: folder of images.
        image_size: side to which they are scaled, in pixels.
        count: number of images, evenly spaced in the folder.
        claims: what the mean over the blocks is to show.
    """

    cells: Mapping[str, str]
    images: str
    image_size: int
    count: int
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study, ready to be run.

    Attributes:
        name: of its file.
        title: what is compared.
        question: what is asked, and what the answer is worth.
        tables: what it shows.
        curves: which features it looks at, if any.
        arms: all cells that it needs, each after the one that it starts from.
        seconds: about how long each arm takes for one seed.
    """

    name: str
    title: str
    question: str
    tables: tuple[Table, ...]
    curves: Curves | None
    arms: tuple[Arm, ...]
    seconds: Mapping[str, float]


def list_studies(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Files of the studies of a folder by name; a file whose name begins with _ is a base.

    Raises:
        FileNotFoundError: there is none.
    """
    files = {p.stem: p for p in sorted(Path(folder).glob("*.py")) if not p.name.startswith("_")}
    if not files:
        raise FileNotFoundError(f"there is no study, that is no *.py, in {folder}")
    return files


def load_study(path: str | os.PathLike[str], longer: int = 1) -> Study:
    """Read a study and build the configs of all its cells.

    Args:
        path: its file.
        longer: factor of all lengths.

    Raises:
        FileNotFoundError: there is no such file, or a cell names a config that is not there.
        StudyError: an entry is missing, unknown, or names what is not there.
        ValueError: longer is below 1.
    """
    if longer < 1:
        raise ValueError(f"longer must be at least 1, got {longer}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no study {path}")
    cfg = Config.fromfile(path)
    content = cfg.to_dict()
    missing = [key for key in ("title", "question", "cells", "tables") if key not in content]
    if missing:
        raise StudyError(f"{path} lacks {', '.join(missing)}")
    cells = {name: _make(Cell, f"cell {name!r}", v) for name, v in content["cells"].items()}
    tables = tuple(_table(table) for table in content["tables"])
    curves = _curves(content["curves"]) if "curves" in content else None
    needed = [row.cell for table in tables for row in table.rows]
    needed += list(curves.cells.values()) if curves else []
    order = _order(needed, cells)
    # Many cells share a file, and reading one takes a while.
    files = {file: Config.fromfile(config_path(file)) for file in {cells[n].config for n in order}}
    return Study(
        name=path.stem,
        title=content["title"],
        question=content["question"].strip(),
        tables=tables,
        curves=curves,
        arms=tuple(_arm(name, cells[name], files, longer) for name in order),
        seconds={name: cells[name].seconds * longer for name in order},
    )


def _make(kind: type[T], what: str, fields: Mapping[str, Any]) -> T:
    try:
        return kind(**fields)
    except TypeError as error:
        raise StudyError(f"{what} has other entries than it may have: {error}") from error


def _table(fields: Mapping[str, Any]) -> Table:
    what = f"table {fields.get('name')!r}"
    table = _make(Table, what, fields)
    rows = tuple(_make(Row, f"a row of {what}", row) for row in fields["rows"])
    labels = [row.label for row in rows]
    if len(set(labels)) < len(labels):
        raise StudyError(f"the rows of {what} need different labels, got {labels}")
    if table.x is not None and any(row.x is None for row in rows):
        raise StudyError(f"{what} is drawn over {table.x!r}, so each row needs its x")
    return replace(table, rows=rows, claims=_claims(what, fields.get("claims", ()), labels))


def _curves(fields: Mapping[str, Any]) -> Curves:
    curves = _make(Curves, "curves", fields)
    return replace(curves, claims=_claims("curves", fields.get("claims", ()), list(curves.cells)))


def _claims(what: str, claims: Sequence[Any], labels: Sequence[str]) -> tuple[Claim, ...]:
    made = tuple(_make(Claim, f"a claim of {what}", claim) for claim in claims)
    for claim in made:
        if unknown := set(claim.labels()) - set(labels):
            raise StudyError(f"a claim of {what} names {sorted(unknown)}, not one of {labels}")
    return made


def _order(needed: Sequence[str], cells: Mapping[str, Cell]) -> list[str]:
    """Names of the cells that are needed, each once and after the one that it starts from."""
    order: list[str] = []

    def add(name: str, behind: tuple[str, ...]) -> None:
        if name in order:
            return
        if name not in cells:
            raise StudyError(f"there is no cell {name!r}; the cells are {', '.join(cells)}")
        if name in behind:
            raise StudyError(f"cells start from each other: {' from '.join((*behind, name))}")
        start = cells[name].start
        if start is not None:
            add(start, (*behind, name))
        order.append(name)

    for name in needed:
        add(name, ())
    return order


def _arm(name: str, cell: Cell, files: Mapping[str, Config], longer: int) -> Arm:
    cfg = copy.deepcopy(files[cell.config])
    set_length(cfg, cell.steps * longer)
    backbone = cfg.model.backbone
    init_cfg = backbone.get("init_cfg") or {}
    pretrained = init_cfg if "checkpoint" in init_cfg else dict(type="Pretrained")
    if cell.start is not None:
        backbone.init_cfg = dict(pretrained, checkpoint=None)
    elif pretrained is init_cfg:
        backbone.init_cfg = None
        # A random encoder has nothing to keep, so all its layers learn at the full rate.
        if "decay_rate" in (cfg.optim_wrapper.get("paramwise_cfg") or {}):
            cfg.optim_wrapper.paramwise_cfg.decay_rate = 1.0
    try:
        apply_options(cfg, cell.options)
    except ValueError as error:
        raise StudyError(f"cell {name!r}: {error}") from error
    return Arm(name, cfg, inputs=_data_folders(cfg), start=cell.start)


def _data_folders(cfg: Config) -> tuple[Path, ...]:
    folders = []
    for key in ("train_dataloader", "val_dataloader"):
        if cfg.get(key) is not None:
            dataset = cfg[key].dataset
            folders.append(Path(dataset.get("dataset", dataset).data_root))
    return tuple(dict.fromkeys(folders))
