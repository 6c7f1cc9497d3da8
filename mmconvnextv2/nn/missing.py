"""What may be done about missing values, which stand as NaN in images."""

from __future__ import annotations

from typing import Literal

Missing = Literal["refuse", "ignore"]
"""Refuse images with missing values, or leave the values out of statistics and loss."""


def check_missing(missing: str) -> None:
    """Check a choice.

    Raises:
        ValueError: it is no `Missing`.
    """
    if missing not in ("refuse", "ignore"):
        raise ValueError(f"missing must be 'refuse' or 'ignore', got {missing!r}")
