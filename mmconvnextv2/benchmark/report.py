"""`report`: docs/benchmarks.md and its pictures, from what the benchmarks wrote as JSON."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmconvnextv2.benchmark.pictures import draw_bars, draw_sweep
from mmconvnextv2.benchmark.results import groups_of, read_document, table_of
from mmconvnextv2.benchmark.targets import MIN_REPEAT, TARGETS, Finding, Target, evaluate
from mmconvnextv2.files import write_atomically

PAGE = "benchmarks.md"
PICTURES = Path("images") / "benchmarks"

INTRODUCTION = """\
# Benchmarks

<!-- Written by `python -m mmconvnextv2.benchmark report`; do not edit. -->

Every table is one run of `python -m mmconvnextv2.benchmark`, with the command, the machine and
the versions above it. Alternatives take turns in one process; a figure is the median of the rounds
after a warm-up. Figures of different tables come from different runs, and only figures of one
table can be compared.

How to read the columns: **quartiles** are those of the milliseconds. **GMACs** are
multiply-accumulates of convolutions and matrix products, backward pass included. **time / floor**
divides the time by that of the step's own matrix products alone, at the same shapes. **weights**
are parameters, gradients and optimizer state; **activations** is what the allocator hands out on
top at the peak of a step whose gradients exist from the start; **kept** is the part of it that
autograd holds from the forward to the backward pass. "packed, nothing removed" runs the packed
layout under an empty mask, and so tells what the masked layout would cost with the same kernels.
All alternatives of a step have the same AdamW.
"""


AT_SCALE = """\
## At scale

Whole recipes, from a step in the tables above: `tools/analysis_tools/plan_run.py` multiplies it by
the recipe's schedule. What it calls measured was; the rest is an extrapolation, linear in the batch
and with perfect scaling over the processes, so that a real cluster takes longer. The times are
those of the machine above, whose steps they are.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command understands."""
    parser.add_argument("json", nargs="+", type=Path, help="files that `--json` wrote")
    parser.add_argument(
        "--plans",
        nargs="+",
        default=[],
        type=Path,
        help="what plan_run.py printed, a file a recipe",
    )
    parser.add_argument(
        "--notes", type=Path, help="Markdown to stand below the targets, written by a person"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder to write to (docs)")


def write_report(
    paths: Sequence[Path], out: Path, plans: Sequence[Path] = (), notes: Path | None = None
) -> Path:
    """Write the page and its pictures.

    Args:
        paths: documents, in the order in which they shall stand.
        out: folder of the page.
        plans: texts of `tools/analysis_tools/plan_run.py`.
        notes: Markdown to stand below the targets.

    Returns:
        The page.

    Raises:
        ValueError: a file is no document of a benchmark.
        OSError: a file cannot be read or written.
    """
    documents = [read_document(path) for path in paths]
    pictures: dict[Path, bytes] = {}

    def add_picture(name: str, png: bytes) -> str:
        path = PICTURES / f"{_slug(name)}.png"
        if path in pictures:
            raise ValueError(f"two pictures would have the name {path}: leave one document out")
        pictures[path] = png
        return f"![{name}]({path.as_posix()})"

    text = "" if notes is None else notes.read_text(encoding="utf-8")
    page = render(documents, add_picture, [path.read_text() for path in plans], text)
    for path, png in pictures.items():
        write_atomically(out / path, png)
    write_atomically(out / PAGE, page.encode())
    return out / PAGE


def render(
    documents: Sequence[Mapping[str, Any]],
    add_picture: Callable[[str, bytes], str],
    plans: Sequence[str] = (),
    notes: str = "",
) -> str:
    """The page's text.

    Args:
        documents: what the benchmarks wrote.
        add_picture: takes a picture's name and PNG, returns the Markdown that shows it.
        plans: of whole recipes, as plain text.
        notes: Markdown to stand below the targets.
    """
    parts = [INTRODUCTION, render_targets(evaluate(TARGETS, documents))]
    if notes:
        parts.append(notes)
    parts += [render_document(document, add_picture) for document in documents]
    if plans:
        parts += [AT_SCALE, *(f"```\n{plan.strip()}\n```\n" for plan in plans)]
    return "\n".join(parts)


def render_targets(findings: Iterable[Finding | Target]) -> str:
    """The table of targets with what was measured."""
    rows = []
    for entry in findings:
        if isinstance(entry, Target):
            rows.append([entry.text, entry.quantity, entry.limit, "not measured", "", ""])
            continue
        target, document = entry.target, entry.document
        verdict = "reached" if target.is_met(entry.value) else "**not reached**"
        value = f"{entry.value:.2f}x ({entry.against})"
        rows.append(
            [target.text, target.quantity, target.limit, value, verdict, title_of(document)]
        )
    header = ["comparison", "measured as", "target", "measured", "", "in"]
    note = f"Only runs of at least {MIN_REPEAT} rounds are judged."
    return "\n".join(["## Targets", "", note, "", *_table(header, rows), ""])


def render_document(document: Mapping[str, Any], add_picture: Callable[[str, bytes], str]) -> str:
    """One run: where it ran, its tables and pictures, and what it left out."""
    environment, title = document["environment"], title_of(document)
    versions = ", ".join(version for version in environment["peers"].values() if version)
    device = f"{environment['gpu']}; " if environment["gpu"] else ""
    lines = [
        f"## {title}",
        "",
        "```",
        document["command"],
        "```",
        "",
        f"{document['date'][:10]}; {device}{environment['cpu']} ({environment['instructions']}), "
        f"{environment['threads']} of {environment['cores']} cores' threads; "
        f"{environment['system']}; Python {environment['python']}, torch {environment['torch']}, "
        f"mmconvnextv2 {environment['mmconvnextv2']}; {versions or 'no peers installed'}.",
        "",
    ]
    for group in groups_of(document):
        lines += _render_group(document, group, title, add_picture)
    for sweep, rows in _sweeps(document).items():
        if len({row["point"]["value"] for row in rows}) > 1:
            lines += [add_picture(f"{title}, {sweep}", draw_sweep(sweep, rows)), ""]
    return "\n".join(lines)


def title_of(document: Mapping[str, Any]) -> str:
    """What a run is called: the benchmark and what it depends on most."""
    arguments, environment = document["arguments"], document["environment"]
    device = environment["gpu"] or "CPU"
    if document["benchmark"] == "dataload":
        return f"dataload, {device}"
    side = arguments["image_size"]
    sizes = arguments["sizes"] if document["benchmark"] == "dense" else [(side, side)]
    parts = [
        document["benchmark"],
        arguments["arch"],
        f"batch {arguments['batch']}",
        " and ".join(f"{h} px" if h == w else f"{h}x{w} px" for h, w in sizes),
        arguments["dtype"],
        device,
    ]
    return ", ".join(parts)


def _render_group(
    document: Mapping[str, Any],
    group: str,
    title: str,
    add_picture: Callable[[str, bytes], str],
) -> list[str]:
    rows = [row for row in document["rows"] if row["group"] == group]
    left_out = [entry for entry in document["left_out"] if entry["group"] == group]
    lines = [f"### {group}", ""]
    if rows:
        baseline = rows[0]["baseline"]
        if baseline is not None:
            lines += [f"Speed-up over {baseline}.", ""]
        lines += [*_table(*table_of(document, group)), ""]
        # The points of a sweep have one picture together.
        if rows[0]["point"] is None:
            lines += [add_picture(f"{title}, {group}", draw_bars(group, rows)), ""]
    if left_out:
        lines += ["Left out:", ""]
        lines += [f"- {entry['name']}: {entry['reason']}" for entry in left_out]
        lines.append("")
    return lines


def _sweeps(document: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    sweeps: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["rows"]:
        if row["point"] is not None:
            sweeps.setdefault(row["point"]["sweep"], []).append(row)
    return sweeps


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in [header, *lines]]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
