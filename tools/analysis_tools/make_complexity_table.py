"""Write docs/complexity.md: counted parameters and FLOPs beside the published ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from mmengine.config import Config
from rich.progress import track

from mmconvnextv2.analysis.complexity import (
    NUM_MASKS,
    NUM_PROPOSALS,
    Complexity,
    build_model,
    measure_config,
    measure_detector,
    measure_module,
    measure_segmentor,
    shapes_only,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data" / "published_results.yml"
PAGE = ROOT / "docs" / "complexity.md"
LARGE_GAP = 0.01

INTRODUCTION = """\
# Parameters and FLOPs

<!-- Written by tools/analysis_tools/make_complexity_table.py; do not edit. -->

Counted on {date} with torch {torch} and timm {timm}, with the command

```
python tools/analysis_tools/make_complexity_table.py
```

One row is counted by `python tools/analysis_tools/get_flops.py CONFIG [--shape HEIGHT WIDTH]`,
which also lists the parts of the model. Published figures are in
`docs/data/published_results.yml`.

What is counted: 1 FLOP is one multiply-accumulate, as in the paper. Every convolution and every
matrix product of one image's forward pass counts, attention included; norms, activations,
pooling, interpolation and RoIAlign do not, so our figures tend to lie a little below those of
counters that include norms and activations. Detectors are charged for {proposals} proposals in the
box head and {masks} in the mask head, whatever the image, as in mmdet's own tool. Segmentors are
charged for their decode head on the whole image; the auxiliary head has parameters, and costs
nothing outside training. Inputs are height x width. A gap of more than 1 % is explained below its
table.
"""

FCMAE = """\
## FCMAE, one image's forward pass at 224x224

At a mask ratio of 0.6, 19 of 49 cells are visible. "Whole maps" is the `masked` layout, which
computes removed cells and zeroes them, as the paper's own runs did; "visible only" is the `packed`
layout. Its share would be 19 / 49 = {share} if the depthwise convolution, too, were confined to
visible cells; outside float32 on a CPU it runs over the dense map, and is charged for that. The
decoder is dense in both. A training step costs about three times a forward pass, since every
product has two gradients.

Parameters in millions, FLOPs in G.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="published figures (YAML)")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write (Markdown)")
    return parser.parse_args(argv)


def measure_row(row: dict[str, Any]) -> Complexity:
    """Count the model of one row of the published figures."""
    shape = tuple(row["shape"])
    if "timm" in row:
        # timm reads its drop path rates while it builds, which fake tensors forbid and meta allows.
        with torch.device("meta"):
            model = timm.create_model(**row["timm"]).eval()
            with shapes_only():
                return measure_module(row["model"], model, shape)
    cfg = Config.fromfile(ROOT / "configs" / row["config"])
    if "options" not in row:
        return measure_config(cfg, shape)[0]
    cfg.merge_from_dict(row["options"])
    # Swin reads values while it is built, so it is built for real.
    model = build_model(cfg)
    measure = measure_detector if "roi_head" in cfg.model else measure_segmentor
    with shapes_only():
        return measure(model, shape)


def render_group(group: dict[str, Any], counted: Iterable[Complexity]) -> str:
    """One section: the table, and what explains its large gaps.

    Raises:
        ValueError: a gap of more than 1 % has no explanation.
    """
    rows, gaps = [], []
    for row, complexity in zip(group["rows"], counted, strict=True):
        published = row.get("published")
        gap = None if published is None else complexity.flops / 1e9 / published - 1
        mark = ""
        if gap is not None and abs(gap) > LARGE_GAP:
            if "gap" not in row:
                raise ValueError(
                    f"{group['title']}, {row['model']}: {_giga(complexity.flops)} G is "
                    f"{_percent(gap)} from the published {published} G; explain it in `gap`"
                )
            gaps.append(explain(row, complexity))
            mark = f" ({len(gaps)})"
        rows.append(
            [
                row["model"],
                "{}x{}".format(*row["shape"]),
                f"{complexity.parameters / 1e6:.1f}",
                _number(row.get("parameters")),
                _giga(complexity.flops),
                _number(published),
                "" if gap is None else _percent(gap) + mark,
                origin(row),
            ]
        )
    header = ["model", "input", "parameters (M)", "published", "FLOPs (G)", "published", "gap"]
    lines = [f"## {group['title']}", "", f"Published figures: {group['source']}.", ""]
    lines += table([*header, "counted from"], rows)
    lines += [""] * bool(gaps) + [f"({i}) {text}\n" for i, text in enumerate(gaps, start=1)]
    return "\n".join(lines).rstrip() + "\n"


def origin(row: dict[str, Any]) -> str:
    """What a row is counted from."""
    if "timm" in row:
        return f"timm `{row['timm']['model_name']}`"
    return f"`{row['config']}`" + (", another backbone" if "options" in row else "")


def explain(row: dict[str, Any], complexity: Complexity) -> str:
    """The explanation of a row's gap, with the figures it asks for."""
    without = complexity.flops - complexity.attention
    change = _percent(without / 1e9 / row["published"] - 1)
    return row["gap"].format(without_attention=f"{_giga(without)} G ({change})")


def render_fcmae(configs: Iterable[str]) -> str:
    """The section on pre-training: whole maps beside visible cells only."""
    rows = []
    for name in configs:
        cfg = Config.fromfile(ROOT / "configs" / name)
        whole, visible = measure_config(cfg)
        encoders = [complexity.parts[0].cost.flops for complexity in (whole, visible)]
        rows.append(
            [
                cfg.model.backbone.arch,
                f"{whole.parameters / 1e6:.1f}",
                *(_giga(encoder) for encoder in encoders),
                f"{100 * encoders[1] / encoders[0]:.1f} %",
                _giga(whole.parts[1].cost.flops),
                _giga(whole.flops),
                _giga(visible.flops),
                f"{whole.flops / visible.flops:.2f}x",
            ]
        )
    header = ["size", "parameters", "encoder, whole maps", "encoder, visible only", "share"]
    header += ["decoder", "total, whole maps", "total, visible only", "saving"]
    return (
        FCMAE.format(share=f"{100 * 19 / 49:.1f} %") + "\n" + "\n".join(table(header, rows)) + "\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def render(data: dict[str, Any], progress: Callable[..., Iterable[Any]] = track) -> str:
    """The whole page.

    Args:
        data: contents of the published figures.
        progress: wraps the groups while they are counted.
    """
    sections = [
        INTRODUCTION.format(
            date=date.today().isoformat(),
            torch=torch.__version__,
            timm=timm.__version__,
            proposals=NUM_PROPOSALS,
            masks=NUM_MASKS,
        )
    ]
    for group in progress(data["complexity"], description="counting"):
        sections.append(render_group(group, [measure_row(row) for row in group["rows"]]))
    sections.append(render_fcmae(progress(data["fcmae"], description="FCMAE")))
    return "\n".join(sections)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _giga(flops: int) -> str:
    """Four significant digits."""
    return f"{flops / 1e9:#.4g}".rstrip(".")


def _percent(change: float) -> str:
    return f"{100 * change:+.1f} %".replace("-0.0", "0.0").replace("+0.0", "0.0")


def main(argv: list[str] | None = None) -> int:
    """Count everything, then write the page."""
    args = parse_args(argv)
    try:
        page = render(yaml.safe_load(args.data.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.out.write_text(page, encoding="utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
