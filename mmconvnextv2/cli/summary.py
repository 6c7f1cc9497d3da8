"""What a command prints when it is done: figures, places, and the next command to run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmconvnextv2.apis.results import RunResult


LABELS = {"first_loss": "loss, first step", "last_loss": "loss, mean of the last 10 steps"}
"""What the losses of a `RunResult` are, in words."""


def print_run(result: RunResult) -> None:
    """Print what a training run came to."""
    from mmconvnextv2.analysis.plan import format_seconds

    rows = [
        ("time, validations included", format_seconds(result.seconds)),
        ("images/s, median step", f"{result.images_per_second:.3g}"),
        *((LABELS.get(name, name), f"{value:.4g}") for name, value in result.metrics.items()),
        ("checkpoint", result.checkpoint),
        ("config", result.config),
        ("curves", command("tensorboard", "--logdir", result.out)),
    ]
    if logs := sorted(result.out.glob("*/*.log")):
        rows.append(("log", logs[-1]))
    print_summary(f"{result.task} finished", rows)


def print_summary(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print a title, and rows of a name and a value below it."""
    width = max((len(name) for name, _ in rows), default=0)
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def print_next(*words: str | os.PathLike[str]) -> None:
    """Print the command to run next, ready to be pasted."""
    print(f"next: {command('mmconvnextv2', *words)}")


def folder_of(checkpoint: str) -> Path:
    """The folder of a run that is given itself, or by one of its checkpoints."""
    path = Path(checkpoint)
    return path if path.is_dir() else path.parent


def command(*words: str | os.PathLike[str]) -> str:
    """A command line, quoted for the shell."""
    return shlex.join(os.fspath(word) for word in words)
