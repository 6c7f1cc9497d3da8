"""A check of arguments that several modules share."""

from __future__ import annotations

from typing import Any


def is_whole_number(value: Any) -> bool:
    """Whether an argument is an int, and not True or False, which Python counts among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Check an argument that counts something.

    Args:
        name: what the message calls it.
        value: the argument.
        least: smallest number allowed.

    Raises:
        ValueError: it is no whole number, or smaller.
    """
    if not is_whole_number(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
