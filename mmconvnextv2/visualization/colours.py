"""Colours of lines that are compared with each other."""

from __future__ import annotations

_LINES = ("#1f4e8c", "#c0504d", "#5f8f2d", "#8064a2", "#d08a1d", "#2a9d9d")


def line_colours(count: int) -> list[str]:
    """So many colours, from the first again where there are more than six."""
    return [_LINES[i % len(_LINES)] for i in range(count)]
