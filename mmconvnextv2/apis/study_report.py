"""What a study found: tables with the paper's figures, verdicts, pictures, a part of a page."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from scipy import stats

from mmconvnextv2.analysis.feature_statistics import COLLAPSED_BELOW
from mmconvnextv2.apis.study import Results, markdown_table, summarize
from mmconvnextv2.apis.study_curves import Distances
from mmconvnextv2.apis.study_definition import Claim, Curves, Side, Study, StudyError, Table
from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.comparison import plot_comparison
from mmconvnextv2.visualization.feature_diversity import plot_feature_diversity
from mmconvnextv2.visualization.study import plot_dependence

CONFIDENCE = 0.95
START = "start."
"""What the name of a metric begins with that belongs to the cell which a row starts from."""

Outcome = Literal["supported", "contradicted", "not supported", "not tested"]


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim.

    Attributes:
        says: the claim.
        outcome: "supported" where the 95 % confidence interval of the difference of means, by
            Welch's t-test, lies above 0; "contradicted" where it lies below; "not supported" where
            it holds 0; "not tested" with fewer than two seeds.
        difference: mean of the side that should be better, less that of the other.
        low: lower end of the interval; nan where there is none.
        high: its upper end.
    """

    says: str
    outcome: Outcome
    difference: float
    low: float = math.nan
    high: float = math.nan

    def line(self) -> str:
        """The verdict as a line of Markdown."""
        text = f"**{self.outcome}**: {self.says} ({self.difference:+.3g}"
        if self.outcome == "not tested":
            return f"- {text}; a single seed has no spread)."
        return f"- {text}, {CONFIDENCE:.0%} interval {self.low:+.3g} to {self.high:+.3g})."


@dataclass(frozen=True)
class Report:
    """What has been written of a study.

    Attributes:
        body: tables, verdicts and links to the pictures, which lie in the same folder.
        pictures: the PNG files.
        complete: whether every row has a result for every seed.
    """

    body: str
    pictures: tuple[Path, ...]
    complete: bool


def judge_claim(claim: Claim, values: Mapping[str, Sequence[float]]) -> Verdict:
    """Say whether the values of a table's rows support a claim.

    Args:
        claim: the claim; its sides are labels of rows.
        values: values of each row, seed by seed.
    """
    better, than = (_side(side, values) for side in (claim.better, claim.than))
    difference = sum(better) / len(better) - sum(than) / len(than)
    if min(len(better), len(than)) < 2:
        return Verdict(claim.says, "not tested", difference)
    if len({*better}) == len({*than}) == 1:  # no spread, so there is no test
        low = high = difference
    else:
        test = stats.ttest_ind(better, than, equal_var=False)
        low, high = (float(v) for v in test.confidence_interval(CONFIDENCE))
    outcome: Outcome = "supported" if low > 0 else "contradicted" if high < 0 else "not supported"
    return Verdict(claim.says, outcome, difference, low, high)


def _side(side: Side, values: Mapping[str, Sequence[float]]) -> list[float]:
    if isinstance(side, str):
        return list(values[side])
    first, second = side
    return [a - b for a, b in zip(values[first], values[second], strict=True)]


def write_report(
    study: Study,
    results: Results,
    seeds: Sequence[int],
    folder: str | os.PathLike[str],
    distances: Distances | None = None,
) -> Report:
    """Write ``study.md``, ``study.json`` and a picture for each table with what there is so far.

    Args:
        study: its definition.
        results: metrics of its cells by name and seed; cells may be missing.
        seeds: the seeds that are asked for.
        folder: where to write.
        distances: what `measure_curves` found, when it has been asked.

    Raises:
        StudyError: a cell lacks a metric that a table shows.
    """
    folder = Path(folder)
    parts: list[_Part] = []
    found: dict[str, object] = {}
    complete = True
    for table in study.tables:
        rows = _rows(study, table, results)
        complete &= all(len(rows.get(row.label, ())) == len(seeds) for row in table.rows)
        if rows:
            part, found[table.name] = _report_table(study, table, rows, folder)
            parts.append(part)
    if study.curves is not None and distances is not None:
        part, found["curves"] = _report_curves(study, study.curves, distances, folder)
        parts.append(part)
    body = "\n".join(part.text for part in parts)
    text = f"# {study.title}\n\n{study.question}\n\n{body}"
    write_atomically(folder / "study.md", text.encode())
    content = dict(title=study.title, seeds=list(seeds), complete=complete, tables=found)
    write_atomically(folder / "study.json", (json.dumps(content, indent=2) + "\n").encode())
    return Report(body, tuple(part.picture for part in parts), complete)


@dataclass(frozen=True)
class _Part:
    text: str
    picture: Path


def _report_table(
    study: Study, table: Table, rows: Results, folder: Path
) -> tuple[_Part, dict[str, object]]:
    columns = {metric: summarize(rows, metric) for metric in table.metrics}
    values = {label: row.values for label, row in next(iter(columns.values())).items()}
    verdicts = _judge_all(table.claims, rows, values)
    paper = {row.label: row.paper for row in table.rows}
    more = {}
    if table.paper is not None:
        more[table.paper] = {k: f"{v:g}" for k, v in paper.items() if v is not None}
    picture = _draw(table, values, folder / f"{study.name}-{table.name}.png")
    text = _text(table.title, markdown_table(rows, table.metrics, more), picture, verdicts)
    found = {
        label: dict(
            seeds=list(cells),
            paper=paper[label],
            **{metric: _finite(asdict(columns[metric][label])) for metric in table.metrics},
        )
        for label, cells in rows.items()
    }
    return _Part(text, picture), dict(rows=found, claims=[_finite(asdict(v)) for v in verdicts])


def _report_curves(
    study: Study, curves: Curves, distances: Distances, folder: Path
) -> tuple[_Part, dict[str, object]]:
    rows: Results = {
        label: {seed: {"distance": statistics.fmean(curve)} for seed, curve in by_seed.items()}
        for label, by_seed in distances.items()
    }
    values = {label: row.values for label, row in summarize(rows, "distance").items()}
    verdicts = _judge_all(curves.claims, rows, values)
    means = {
        label: [statistics.fmean(block) for block in zip(*by_seed.values(), strict=True)]
        for label, by_seed in distances.items()
    }
    picture = plot_feature_diversity(means, folder / f"{study.name}-curves.png", COLLAPSED_BELOW)
    title = "Cosine distance of the channels after pre-training"
    table = markdown_table(rows, {"distance": "mean over the blocks"})
    text = _text(title, table, picture, verdicts)
    return _Part(text, picture), dict(
        blocks=distances, claims=[_finite(asdict(v)) for v in verdicts]
    )


def _text(title: str, table: str, picture: Path, verdicts: Sequence[Verdict]) -> str:
    lines = [f"### {title}", "", table, f"![{title}]({picture.name})", ""]
    lines += [*(verdict.line() for verdict in verdicts), *([""] if verdicts else [])]
    return "\n".join(lines)


def _judge_all(
    claims: Sequence[Claim], rows: Results, values: Mapping[str, Sequence[float]]
) -> list[Verdict]:
    """Judge the claims whose rows all have something, and of the same seeds."""
    seeds = [{tuple(rows.get(label, ())) for label in claim.labels()} for claim in claims]
    return [
        judge_claim(claim, values)
        for claim, found in zip(claims, seeds, strict=True)
        if len(found) == 1 and () not in found
    ]


def fill_part(page: str, name: str, title: str, text: str) -> str:
    """Put a text between the page's markers ``<!-- study NAME: begin -->`` and ``: end -->``.

    A page without them gets them at its end, under the title.

    Raises:
        ValueError: the page has not each marker once, in their order.
    """
    begin, end = (f"<!-- study {name}: {word} -->" for word in ("begin", "end"))
    if begin not in page and end not in page:
        page = f"{page.rstrip()}\n\n## {title}\n\n{begin}\n{end}\n"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"the page must have the lines {begin} and {end} once each")
    return pattern.sub(lambda _: f"{begin}\n{text.rstrip()}\n{end}", page)


def _rows(study: Study, table: Table, results: Results) -> Results:
    """Metrics of the table by label and seed, for the rows that have any."""
    starts = {arm.name: arm.start for arm in study.arms}
    rows: Results = {}
    for row in table.rows:
        for seed, metrics in results.get(row.cell, {}).items():
            start = starts[row.cell]
            before = results[start][seed] if start is not None else {}
            found = {**metrics, **{f"{START}{k}": v for k, v in before.items()}}
            # A row that starts at random has spent nothing before.
            for spent in ("seconds", "computing_seconds"):
                found.setdefault(f"{START}{spent}", 0.0)
            if unknown := set(table.metrics) - set(found):
                raise StudyError(
                    f"table {table.name!r} shows {', '.join(sorted(unknown))}, which cell "
                    f"{row.cell!r} does not have: it has {', '.join(found)}"
                )
            rows.setdefault(row.label, {})[seed] = found
    return rows


def _draw(table: Table, values: Mapping[str, Sequence[float]], path: Path) -> Path:
    ylabel = next(iter(table.metrics.values()))
    if table.x is None:
        return plot_comparison(values, path, title=table.title, xlabel=ylabel)
    series: dict[str, dict[float, Sequence[float]]] = {}
    for row in table.rows:
        if row.label in values:
            assert row.x is not None  # the definition was checked
            series.setdefault(row.series, {})[row.x] = values[row.label]
    return plot_dependence(series, path, title=table.title, xlabel=table.x, ylabel=ylabel)


def _finite(fields: dict[str, object]) -> dict[str, object]:
    """Values as JSON takes them: it has no nan."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()
    }
