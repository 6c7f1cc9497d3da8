"""Write docs/results.md: every published accuracy, and the config that reproduces each of ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data" / "published_results.yml"
PAGE = ROOT / "docs" / "results.md"
ROW_KEYS = {"of", "published", "config", "init", "override", "measured"}

INTRODUCTION = """\
# Published results

<!-- Written by tools/analysis_tools/make_results_page.py; do not edit. -->

Every figure in a column that carries a metric's name is **published**: it was measured by the
source that the table names, not with this code. The column "measured" holds what this code
reached, and stays empty until somebody has run the config.

A row with a config is reproduced by that config, below `configs/`. "Starts from" names the config
whose checkpoint it begins with. The config itself says so, except where a star marks the row:
there, the starting point is set by

```
--cfg-options model.backbone.init_cfg.checkpoint=work_dirs/RUN/CHECKPOINT.pth
```

Rows without a config are other people's models, or ablations that the shipped configs do not
cover.

To enter a measured result, add `measured: [...]`, one number a metric, to the row in
`docs/data/published_results.yml` and run `python tools/analysis_tools/make_results_page.py`.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="published figures (YAML)")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write (Markdown)")
    parser.add_argument("--configs", type=Path, default=ROOT / "configs", help="folder of configs")
    return parser.parse_args(argv)


def render(data: dict[str, Any], configs: Path) -> str:
    """The whole page.

    Args:
        data: contents of the published figures.
        configs: folder in which the named configs must be.

    Raises:
        ValueError: a row does not fit its table, or names a config that is not there.
    """
    sections = [INTRODUCTION]
    sections += [render_table(table, configs) for table in data["tables"]]
    return "\n".join(sections)


def render_table(table: dict[str, Any], configs: Path) -> str:
    """One section: title, source, note, rows."""
    ours = any("config" in row for row in table["rows"])
    header = [*table["columns"], *table["metrics"]]
    header += ["measured", "config", "starts from"] if ours else []
    lines = [f"## {table['title']}", "", f"Source: {table['source']}."]
    if "note" in table:
        lines += ["", table["note"]]
    lines += ["", _line(header), "|" + " --- |" * len(header)]
    for row in table["rows"]:
        check_row(table, row, configs)
        cells = [*row["of"], *row["published"]]
        if ours:
            measured = " / ".join(_text(value) for value in row.get("measured", []))
            star = " *" if row.get("override") else ""
            cells += [measured, _path(row.get("config")), _path(row.get("init")) + star]
        lines.append(_line([_text(cell) for cell in cells]))
    return "\n".join(lines) + "\n"


def check_row(table: dict[str, Any], row: dict[str, Any], configs: Path) -> None:
    """Check one row.

    Raises:
        ValueError: unknown keys, a wrong number of cells, or a config that is not there.
    """
    where = f"{table['title']!r}, row {row.get('of')}"
    if not {"of", "published"} <= set(row) <= ROW_KEYS:
        raise ValueError(f"{where}: has the keys {sorted(row)}, allowed are {sorted(ROW_KEYS)}")
    lengths = {"of": "columns", "published": "metrics", "measured": "metrics"}
    for key, names in lengths.items():
        if key in row and len(row[key]) != len(table[names]):
            raise ValueError(f"{where}: `{key}` needs one entry for each of {table[names]}")
    if "config" not in row and {"init", "override", "measured"} & set(row):
        raise ValueError(
            f"{where}: `init`, `override` and `measured` belong to rows with a `config`"
        )
    for key in ("config", "init"):
        if key in row and not (configs / row[key]).is_file():
            raise ValueError(f"{where}: there is no config {configs / row[key]}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(value: str | float | None) -> str:
    return "" if value is None else str(value)


def _path(config: str | None) -> str:
    return "" if config is None else f"`{config}`"


def main(argv: list[str] | None = None) -> int:
    """Write the page, or say in one line why not."""
    args = parse_args(argv)
    try:
        page = render(yaml.safe_load(args.data.read_text(encoding="utf-8")), args.configs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.out.write_text(page, encoding="utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
