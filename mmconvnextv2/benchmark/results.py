"""What a benchmark leaves: one JSON document, and tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmconvnextv2.benchmark.compare import Comparison
from mmconvnextv2.files import write_atomically

SCHEMA = 1
"""Version of the document's form."""

COLUMNS = (
    "alternative",
    "ms",
    "quartiles",
    "img/s",
    "speed-up",
    "GMACs",
    "time / floor",
    "weights MB",
    "activations MB",
    "kept MB",
)
"""Headings of a table of rows."""


def make_document(
    benchmark: str,
    command: str,
    arguments: dict[str, Any],
    environment: dict[str, Any],
    found: Comparison,
) -> dict[str, Any]:
    """Everything about one run, as JSON takes it.

    Args:
        benchmark: its name.
        command: how it was started.
        arguments: all of its arguments, defaults included.
        environment: from `describe_environment`.
        found: what it measured.
    """
    return dict(
        schema=SCHEMA,
        benchmark=benchmark,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        arguments=arguments,
        environment=environment,
        rows=[row.as_dict() for row in found.rows],
        left_out=found.left_out,
    )


def read_document(path: Path) -> dict[str, Any]:
    """Read what a benchmark wrote.

    Raises:
        ValueError: it is not such a document, or of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a benchmark's document of schema {SCHEMA}")
    return document


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write a document as JSON, atomically."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    write_atomically(path, f"{text}\n".encode())


def groups_of(document: Mapping[str, Any]) -> list[str]:
    """Names of the comparisons, in order."""
    entries = [*document["rows"], *document["left_out"]]
    return list(dict.fromkeys(entry["group"] for entry in entries))


def table_of(document: Mapping[str, Any], group: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of one comparison; columns in which nothing stands are left out."""
    rows = [_cells(row) for row in document["rows"] if row["group"] == group]
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    return [COLUMNS[i] for i in used], [[row[i] for i in used] for row in rows]


def print_tables(document: Mapping[str, Any]) -> None:
    """Show a document in the terminal, with rich where it is installed."""
    for group in groups_of(document):
        header, rows = table_of(document, group)
        baseline = next((r["baseline"] for r in document["rows"] if r["group"] == group), None)
        title = group + (f" (speed-up over {baseline})" if baseline else "")
        if rows:
            _print_table(title, header, rows)
        for entry in document["left_out"]:
            if entry["group"] == group:
                print(f"  left out: {entry['name']}: {entry['reason']}")
    environment = document["environment"]
    where = environment["gpu"] or environment["cpu"]
    print(f"{where}, {environment['threads']} CPU threads, torch {environment['torch']}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    seconds, memory = row["seconds"], row["memory"]
    weights = activations = kept = ""
    if memory is not None:
        weights = _mega(memory["parameters"] + memory["gradients"] + memory["optimizer"])
        activations, kept = _mega(memory["activations"]), _mega(memory["saved"])
    return [
        row["name"],
        _number(1e3 * seconds["median"]),
        f"{_number(1e3 * seconds['lower_quartile'])}-{_number(1e3 * seconds['upper_quartile'])}",
        _number(row["images_per_second"]),
        "" if row["speedup"] is None else f"{row['speedup']:.2f}x",
        "" if row["flops"] is None else _number(row["flops"] / 1e9),
        "" if row["time_over_floor"] is None else f"{row['time_over_floor']:.2f}x",
        weights,
        activations,
        kept,
    ]


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain(title, header, rows)
        return
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A narrow terminal, or a pipe that has no width, must not cut figures short.
    needed = sum(width + 3 for width in _widths(header, rows)) + 1
    Console(width=max(Console().width, needed)).print(table)


def _print_plain(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = _widths(header, rows)
    print(f"\n{title}")
    for line in [header, *rows]:
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  " + "  ".join(cells))


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]


def _number(value: float) -> str:
    """Four significant digits, without a tail of zeros before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _mega(count: int) -> str:
    return _number(count / 1e6)
