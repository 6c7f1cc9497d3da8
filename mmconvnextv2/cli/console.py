"""The console of a command: what OpenMMLab tells for the record stays in the log file."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

FOR_THE_RECORD = (
    "System environment:",
    "Config:\n",
    "Hooks will be executed in the following order:",
    "Distributed training is not used",
    "will be deprecated in future",
    "Could not import OneDL",
    "layer decay",
    "software: ",
    "Exp name:",
    *("loading annotations into memory", "Done (t=", "creating index", "index created!"),
    *("Evaluating bbox", "Evaluating segm", "Average Precision  (AP)"),
)
"""What tells such records: hundreds of lines of settings, and OpenMMLab's own concerns."""

SHOWN = ("lr", "eta", "time", "memory", "loss")
"""The figures of a training step that are shown; the log file has the others too."""

_BEGINNING = 300


@contextlib.contextmanager
def short_console() -> Iterator[None]:
    """Leave what is in `FOR_THE_RECORD` out of stdout, and warnings that tell a user nothing.

    Of the figures of a training step those in `SHOWN` are left.
    """
    console: Any = _Console(sys.stdout)
    with contextlib.redirect_stdout(console), warnings.catch_warnings():
        # Every epoch on a machine without a GPU, where pinning is a setting without effect.
        warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")
        warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")
        yield


class _Console:
    """A stream that leaves records out.

    A logger writes each of its records in one piece, `print` the end of the line apart.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line_is_open = False  # of a record

    def write(self, text: str) -> int:
        if any(words in text[:_BEGINNING] for words in FOR_THE_RECORD):
            self._line_is_open = not text.endswith("\n")
        elif self._line_is_open and text == "\n":
            self._line_is_open = False
        else:
            self._stream.write(_short(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _short(text: str) -> str:
    if not re.search(r"(Epoch|Iter)\(train\) ", text):
        return text
    return re.sub(
        r" +(\w+): (\S+)",
        lambda figure: f"  {figure[1]}: {figure[2]}" if figure[1] in SHOWN else "",
        text,
    )
