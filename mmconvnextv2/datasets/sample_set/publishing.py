"""Make a finished folder appear at once under its name, with a stamp that says what it holds."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

STAMP = "sample_set.json"
"""File that marks a finished set."""

_PACKAGES = ("numpy", "pillow", "scikit-image", "scikit-learn", "scipy")


def write_stamp(folder: Path, parameters: dict[str, Any]) -> None:
    """Mark a folder as finished.

    Package versions are recorded, not compared: an update does not make a finished set invalid.

    Args:
        folder: The folder to mark.
        parameters: What its files depend on, as JSON reads it back.
    """
    packages = {package: version(package) for package in _PACKAGES}
    content = dict(parameters=parameters, packages=packages)
    (folder / STAMP).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_parameters(root: Path) -> dict[str, Any] | None:
    """Read what a finished set was built with.

    Args:
        root: Folder of the set.

    Returns:
        The parameters, or None where `root` does not exist or is empty.

    Raises:
        NotADirectoryError: If `root` is a file.
        ValueError: If `root` holds files and no valid stamp: it is not ours to replace.
    """
    if not root.exists():
        return None
    if not root.is_dir():
        raise NotADirectoryError(f"the sample set needs a folder, but {root} is a file")
    if not any(root.iterdir()):
        return None
    try:
        return json.loads((root / STAMP).read_text(encoding="utf-8"))["parameters"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{root} is not empty and holds no sample set (no valid {STAMP}); choose another folder"
        ) from error


def describe_differences(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Say where two sets of parameters differ, e.g. "seed: 0 there, 1 asked".

    Args:
        found: Parameters of the set that is there.
        asked: Parameters that were asked for.

    Returns:
        The differing entries, separated by semicolons.
    """
    there, here = _flatten(found), _flatten(asked)
    return "; ".join(
        f"{key}: {there.get(key, 'nothing')} there, {here.get(key, 'nothing')} asked"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key)
    )


@contextmanager
def workshop(root: Path) -> Iterator[Path]:
    """Lend a hidden folder beside `root`, on the same file system, and remove it at the end.

    A process that is killed leaves its folder behind; no later call reads it.

    Args:
        root: The folder that will be published; its parents are created.

    Yields:
        The hidden folder.

    Raises:
        OSError: If the parent folder cannot be created or written.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{root.name}.building-", dir=root.parent))
    except OSError as error:
        message = f"cannot write the sample set below {root.parent} ({error.strerror})"
        raise type(error)(error.errno, message) from error
    try:
        yield work
    finally:
        shutil.rmtree(work)


def publish(
    fresh: Path, root: Path, replaced: Path, parameters: dict[str, Any], overwrite: bool
) -> None:
    """Rename a finished folder to its place.

    Args:
        fresh: The finished folder.
        root: Its place. An older set there is moved away first if `overwrite` is set.
        replaced: Where an older set goes, until the caller removes it.
        parameters: What `fresh` was built with.
        overwrite: Whether an older set may be replaced.

    Raises:
        OSError: If the rename fails; `root` is then as it was.
    """
    found = read_parameters(root)
    if found == parameters:
        return  # Another process has built the same set in the meantime.
    if found is not None and overwrite:
        root.rename(replaced)
    try:
        fresh.rename(root)
    except OSError:
        if replaced.exists():
            replaced.rename(root)
        raise


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
