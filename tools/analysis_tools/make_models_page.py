"""Write docs/models.md: every recipe and every published weight, as the metafiles have them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]

INTRODUCTION = """\
---
hide: [toc]
---

# Recipes and model zoo

<!-- Written by tools/analysis_tools/make_models_page.py; do not edit. -->

A **recipe** is a config: everything a training needs, with the values of the paper. A **published
weight** is a file that somebody trained; accuracies are those that its publisher measured. None of
the recipes for ImageNet, COCO or ADE20K has been run to its end here.

For your own images you need neither: [Pre-train on my images](pretrain.md),
[Fine-tune on my labels](finetune.md). How to use a name of these tables:
[Use and publish](zoo.md).
"""

TITLES = {
    "fcmae": "Pre-training with FCMAE",
    "convnextv2": "Classification",
    "mask_rcnn": "Detection and instance segmentation",
    "upernet": "Semantic segmentation",
}
"""Heading of each folder of configs."""

METRICS = {
    "Top 1 Accuracy": "top-1",
    "box AP": "box AP",
    "mask AP": "mask AP",
    "mIoU": "mIoU",
}
"""Columns for accuracies, by OpenMMLab's names; a table shows those that it has."""

Entry = dict[str, Any]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds model-index.yml")
    parser.add_argument("--out", type=Path, help="page to write; docs/models.md below the root")
    return parser.parse_args(argv)


def render(root: Path) -> str:
    """The whole page, from the metafiles that model-index.yml lists.

    Raises:
        KeyError: a metafile is of a folder without a heading.
    """
    parts = [INTRODUCTION]
    for file in yaml.safe_load((root / "model-index.yml").read_text())["Import"]:
        entries = yaml.safe_load((root / file).read_text())["Models"]
        parts.append(f"## {TITLES[Path(file).parent.name]}\n")
        if weights := [entry for entry in entries if "Weights" in entry]:
            parts += ["### Published weights\n", _table(weights, _weight_row)]
        recipes = [entry for entry in entries if "Weights" not in entry]
        recipes.sort(key=lambda entry: (entry["Metadata"]["Parameters"], entry["Name"]))
        parts += ["### Recipes\n", _table(recipes, _recipe_row)]
    return "\n".join(parts)


def _weight_row(entry: Entry) -> dict[str, str]:
    row = {"name": f"[`{entry['Name']}`]({entry['Weights']})"}
    if official := entry.get("Converted From", {}).get("Weights"):
        row["converted from"] = f"[official]({official})"
    return row | _figures(entry) | {"licence": entry["Metadata"]["License"]}


def _recipe_row(entry: Entry) -> dict[str, str]:
    return {"config": f"`{entry['Name']}`"} | _figures(entry)


def _figures(entry: Entry) -> dict[str, str]:
    about = entry["Metadata"]
    data = about["Training Data"]
    row = {
        "trained on": data if isinstance(data, str) else ", ".join(data),
        "input": about["Input Size"],
        "parameters (M)": f"{about['Parameters'] / 1e6:.1f}",
        "FLOPs (G)": f"{about['FLOPs'] / 1e9:.3g}",
    }
    for result in entry.get("Results") or ():
        for name, value in result["Metrics"].items():
            if name in METRICS:
                row[METRICS[name]] = f"{value:g}"
    return row


def _table(entries: Iterable[Entry], row_of: Any) -> str:
    rows = [row_of(entry) for entry in entries]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "licence"))
    columns += ["licence"] if "licence" in rows[0] else []
    lines = [columns, ["---"] * len(columns)]
    lines += [[row.get(name, "") for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page."""
    args = parse_args(argv)
    out = args.out or args.root / "docs" / "models.md"
    out.write_text(render(args.root), encoding="utf-8")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
