"""Load a state_dict with nothing left unsaid."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from mmconvnextv2.checkpoint.reading import read_checkpoint

__all__ = [
    "GRN_KEY",
    "OUTPUT_NORM",
    "StateDictMismatch",
    "backbone_state_dict",
    "check_fits",
    "load_strictly",
    "read_checkpoint",
]

OUTPUT_NORM = re.compile(r"norm\d\.")
"""Keys of the backbone's output norms, which a checkpoint of another task may lack or have."""

GRN_KEY = re.compile(r"stages\.\d+\.\d+\.grn\.")
"""Keys of the backbone's GRN, or of what stands in its place."""


class StateDictMismatch(ValueError):
    """A state_dict that does not fit a module; the message lists every key concerned."""


def backbone_state_dict(
    state_dict: Mapping[str, Tensor], prefix: str | None = None
) -> dict[str, Tensor]:
    """Take the backbone's tensors out of a whole model's.

    Args:
        state_dict: tensors of a model, or of a backbone alone.
        prefix: what the backbone's keys begin with; None takes ``backbone.`` where any key begins
            with it, and no prefix otherwise.

    Raises:
        StateDictMismatch: no key begins with the prefix that was given.
    """
    if prefix is None:
        prefix = "backbone." if any(key.startswith("backbone.") for key in state_dict) else ""
    elif prefix and not prefix.endswith("."):
        prefix += "."
    chosen = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not chosen:
        first = ", ".join(list(state_dict)[:5])
        raise StateDictMismatch(f"no key begins with {prefix!r}; the first keys are {first}")
    return chosen


def load_strictly(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    optional: re.Pattern[str] | None = None,
    what: str = "tensors",
) -> str:
    """Copy tensors into a module, all of them or none.

    Args:
        module: receives the tensors in place.
        state_dict: its tensors by name.
        optional: keys that match may be missing from the state_dict, or superfluous in it.
        what: what the messages call the tensors.

    Returns:
        One line that says how many tensors were loaded and names the optional ones that were not.

    Raises:
        StateDictMismatch: a key is missing, unexpected or of another shape; the module is
            untouched.
    """
    own = module.state_dict()
    missing, unexpected = check_fits(own, state_dict, optional, what)
    shared = {key: value for key, value in state_dict.items() if key in own}
    module.load_state_dict({**own, **shared})
    summary = f"loaded {len(shared)} of {len(own)} {what}"
    if missing:
        summary += f"; start fresh: {', '.join(missing)}"
    if unexpected:
        summary += f"; not used: {', '.join(unexpected)}"
    return summary


def check_fits(
    own: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    optional: re.Pattern[str] | None = None,
    what: str = "tensors",
) -> tuple[list[str], list[str]]:
    """Compare the names and shapes of two state_dicts.

    Args:
        own: what a module has.
        state_dict: what a file has.
        optional: keys that match may be missing or superfluous.
        what: what the message calls the tensors.

    Returns:
        The optional keys that are missing, and those that are superfluous.

    Raises:
        StateDictMismatch: a key is missing, unexpected or of another shape.
    """
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    misshaped = [
        f"{key}: {tuple(state_dict[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]

    def required(keys: list[str]) -> list[str]:
        return [key for key in keys if not (optional and optional.match(key))]

    problems = dict(missing=required(missing), unexpected=required(unexpected), misshaped=misshaped)
    if any(problems.values()):
        lists = [f"\n  {len(keys)} {name}: {', '.join(keys)}" for name, keys in problems.items()]
        matched = len(own) - len(missing) - len(misshaped)
        raise StateDictMismatch(
            f"the checkpoint does not fit: {matched} of {len(own)} {what} match{''.join(lists)}"
        )
    return missing, unexpected
