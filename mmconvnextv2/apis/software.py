"""The packages and the processor that a run depends on, as its log records them.

mmengine records Python, torch, torchvision, OpenCV and itself.
"""

from __future__ import annotations

import re

from mmconvnextv2.apis.doctor import DISTRIBUTIONS
from mmconvnextv2.benchmark.environment import cpu_name, installed_version
from mmconvnextv2.version import __version__

_LINE = re.compile(r"software: (\S+ .+)")


def software() -> dict[str, str]:
    """Versions by package, and the name of the processor; of what is not installed, an empty text.

    A version of a maintained fork is followed by "(onedl)".
    """
    return {
        "mmconvnextv2": __version__,
        **{
            package: package_version(*names)
            for package, names in DISTRIBUTIONS.items()
            if package != "mmengine"
        },
        "Processor": cpu_name(),
    }


def package_version(*distributions: str) -> str:
    """Version of the first that is installed; an empty text where none is."""
    found = installed_version(distributions)
    if found is None:
        return ""
    name, _, version = found.partition(" ")
    return f"{version} (onedl)" if name.startswith("onedl-") else version


def software_line() -> str:
    """What a run logs at its start."""
    return "software: " + "; ".join(f"{name} {what}" for name, what in software().items() if what)


def read_software(log: str) -> dict[str, str]:
    """What `software_line` has left in the text of a log; nothing in one without the line."""
    line = _LINE.search(log)
    entries = line[1].split("; ") if line else []
    return {name: what for name, _, what in (entry.partition(" ") for entry in entries)}
