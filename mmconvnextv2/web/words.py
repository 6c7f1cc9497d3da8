"""Small texts of the page, as HTML or Markdown: legends, lists, hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmconvnextv2.web.runs import command_for

_RUNS = {
    "pretraining": "pre-training run",
    "detection": "detection run",
    "segmentation": "segmentation run",
}


def heading(folder: Path, problems: Sequence[str]) -> str:
    """Title of the page, whose models these are, and what could not be used."""
    left_out = "".join(f"<li>{escape(line)}</li>" for line in problems)
    note = f'<details><summary>Left out</summary><ul class="left-out">{left_out}</ul></details>'
    return (
        "<h1>ConvNeXt V2</h1>"
        f"<p>What the runs in <code>{escape(str(folder))}</code> make of a picture. Uploads stay "
        "on the machine that serves this page, which deletes them within two hours.</p>"
        f"{note if problems else ''}"
    )


def status(text: str) -> str:
    """A quiet line below the controls."""
    return f'<p class="status" role="status">{escape(text)}</p>'


def problem(error: Exception) -> str:
    """What a visitor can put right, where the status would stand."""
    return f'<p class="problem" role="alert">{escape(str(error))}</p>'


def legend(
    shares: Mapping[str, float], classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> str:
    """The classes that a picture has, with their colours and shares, the largest first.

    Args:
        shares: Share of the picture by class, 0 to 1.
        classes: Names of all classes.
        palette: RGB colour of each class; black stands for "not tinted".

    Returns:
        An HTML list.
    """
    rows = []
    for name, share in sorted(shares.items(), key=lambda entry: -entry[1]):
        colour = tuple(palette[list(classes).index(name)])
        tinted = f"background: rgb{colour}" if any(colour) else ""
        kind = "swatch" if tinted else "swatch untinted"
        note = "" if tinted else " <em>(not tinted)</em>"
        rows.append(
            f'<li><span class="{kind}" style="{tinted}"></span>'
            f'<span class="name">{escape(name)}{note}</span>'
            f'<span class="figure">{share:.1%}</span></li>'
        )
    return f'<ul class="legend">{"".join(rows)}</ul>'


def found(objects: Sequence[Mapping[str, Any]]) -> str:
    """What a detector found, the highest score first.

    Args:
        objects: Entries with "class" and "score".

    Returns:
        An HTML list, or a sentence where there is nothing.
    """
    if not objects:
        return '<p class="nothing">Nothing with such a score: lower it, or try another picture.</p>'
    rows = [
        f'<li><span class="name">{escape(entry["class"])}</span>'
        f'<meter min="0" max="1" value="{entry["score"]:.3f}"></meter>'
        f'<span class="figure">{entry["score"]:.2f}</span></li>'
        for entry in sorted(objects, key=lambda entry: -entry["score"])
    ]
    return f'<ul class="legend">{"".join(rows)}</ul>'


def missing(task: str, folder: Path, init: Path | None) -> str:
    """What to do where a task has no run.

    Args:
        task: One of `mmconvnextv2.web.runs.TASKS`.
        folder: Where the page looks for runs.
        init: Checkpoint of a pre-training run to fine-tune from, if there is one.

    Returns:
        Markdown.
    """
    return (
        f"### There is no {_RUNS[task]} in `{folder}` yet\n\n"
        f"This makes one:\n\n```bash\n{command_for(task, folder, init)}\n```\n\n"
        "On the built-in sample data, `make demo` makes all three. Start the page again afterwards."
    )
