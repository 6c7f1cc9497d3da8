"""Find the images of a folder and check their headers: pure functions, no registry."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mmconvnextv2.datasets.image_reading import (
    IMAGE_SUFFIXES,
    UnreadableImageError,
    check_header,
    printable,
)
from mmconvnextv2.datasets.path_list import PathList

# Where the layouts in use keep a split, relative to the root: a plain folder, the official
# ImageNet tree (whole and from Data/ on), its archives unpacked one by one.
SPLIT_LAYOUTS = (
    "{split}",
    "ILSVRC/Data/CLS-LOC/{split}",
    "Data/CLS-LOC/{split}",
    "ILSVRC2012_img_{split}",
)
CHECK_ALL_UP_TO = 10_000
CHECK_SAMPLE = 2_000
_CHECK_THREADS = 8
_NAMED_AT_MOST = 20


class TooFewImagesError(ValueError):
    """A folder without an image, or with too few to train on."""


@dataclass
class FolderScan:
    """What a folder holds.

    Attributes:
        images: Paths of the files with an image's suffix, in a fixed order.
        others: How many other files there are, by suffix; "" stands for no suffix.
        unlistable: Reason by path, for the sub-folders that cannot be listed.
    """

    images: PathList = field(default_factory=PathList)
    others: Counter[str] = field(default_factory=Counter)
    unlistable: dict[str, str] = field(default_factory=dict)


def resolve_folder(root: str | os.PathLike[str], split: str | None = None) -> Path:
    """Find the folder to read: the root itself, or that of a split in a known layout.

    Args:
        root: A folder.
        split: Name of a split such as "train", or None for everything below the root.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: There is no such folder, or it has no such split.
        NotADirectoryError: `root` is a file.
    """
    root = Path(root).expanduser()
    if not root.exists():
        above = next(parent for parent in root.absolute().parents if parent.exists())
        raise FileNotFoundError(
            f"no image folder at {root}: {above} exists and holds {_list_entries(above)}"
        )
    if not root.is_dir():
        raise NotADirectoryError(
            f"{root} is a file; a folder of images is needed, for example {root.parent}"
        )
    if split is None:
        return root
    candidates = [root / layout.format(split=split) for layout in SPLIT_LAYOUTS]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"no split {split!r} in {root}: looked for the folders "
        f"{', '.join(str(path.relative_to(root)) for path in candidates)}; "
        f"{root} holds {_list_entries(root)}. Use split=None to read the whole folder"
    )


def scan_folder(
    folder: str | os.PathLike[str], suffixes: Collection[str] = IMAGE_SUFFIXES
) -> FolderScan:
    """List the images of a folder and of its sub-folders.

    Names that start with a dot are skipped, files and folders. Links are followed; a folder that
    is reached twice, through links or a cycle of them, is listed once. The order is that of the
    sorted names, folder by folder, and does not depend on the file system.

    Args:
        folder: An existing folder.
        suffixes: Suffixes of images, in lower case; `RASTER_SUFFIXES` adds .npy.

    Returns:
        The images, with what else was met.

    Raises:
        ValueError: There is no image in it; the message counts what was found.
        OSError: The folder itself cannot be listed.
    """
    scan = FolderScan()
    visited: set[tuple[int, int]] = set()
    pending = [os.fspath(folder)]
    while pending:
        current = pending.pop()
        try:
            identity = os.stat(current)
            entries = _visible_entries(current)
        except OSError as error:
            if current == os.fspath(folder):
                raise
            scan.unlistable[current] = f"the folder cannot be listed: {error.strerror}"
            continue
        if (identity.st_dev, identity.st_ino) in visited:
            continue
        visited.add((identity.st_dev, identity.st_ino))
        sub_folders = [entry.path for entry in entries if _is_folder(entry)]
        pending.extend(reversed(sub_folders))
        files = (entry for entry in entries if not _is_folder(entry))
        _collect_files(files, scan, suffixes)
    if not scan.images:
        raise TooFewImagesError(
            f"no image in {os.fspath(folder)} or below: found {_describe_others(scan)}; "
            f"looked for {' '.join(sorted(suffixes))}"
        )
    return scan


def _visible_entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Follow links as `os.path.isdir` does: a link to itself is no folder, and no error."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _collect_files(
    entries: Iterable[os.DirEntry[str]], scan: FolderScan, suffixes: Collection[str]
) -> None:
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        # A dangling link counts as an image that cannot be read; a pipe or device is no image.
        if suffix in suffixes and (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
            scan.images.append(entry.path)
        else:
            scan.others[suffix] += 1


def choose_headers(paths: Sequence[str]) -> list[str]:
    """Choose whose headers to check: all of up to 10,000 files, else 2,000 evenly spaced ones."""
    if len(paths) <= CHECK_ALL_UP_TO:
        return list(paths)
    return [paths[i * len(paths) // CHECK_SAMPLE] for i in range(CHECK_SAMPLE)]


def find_bad_headers(
    paths: Sequence[str], check: Callable[[str], object] = check_header
) -> dict[str, str]:
    """Check the headers of files, several at a time.

    Args:
        paths: The files.
        check: Raises `UnreadableImageError` on a file that cannot be used.

    Returns:
        Reason by path for those that cannot be read, in the order of `paths`.
    """
    # On a slow or remote disk the threads wait together; Pillow's parsing itself runs one by one.
    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        reasons = pool.map(lambda path: _header_fault(path, check), paths)
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _header_fault(path: str, check: Callable[[str], object]) -> str | None:
    try:
        check(path)
    except UnreadableImageError as error:
        return error.reason
    return None


def describe_bad(bad: Mapping[str, str], total: int = 0) -> str:
    """Return one line for each bad file, at most 20 of them, and the number left out.

    Args:
        bad: Reason by path.
        total: Number of all bad files, where it is larger because `bad` holds a part of them.
    """
    chosen = list(bad.items())[:_NAMED_AT_MOST]
    lines = [f"  {printable(path)}: {reason}" for path, reason in chosen]
    left_out = max(len(bad), total) - len(chosen)
    if left_out > 0:
        lines.append(f"  and {left_out:,} more")
    return "\n".join(lines)


def describe_mixture(kinds: Mapping[str, str]) -> str:
    """Return for example "9 uint16 (such as a.tif), 1 uint8 (such as b.png)", by kind of path."""
    # Equal counts stand in the order of the paths, whichever thread looked first.
    counts = Counter(kinds[path] for path in sorted(kinds)).most_common()
    examples = {kind: path for path, kind in sorted(kinds.items(), reverse=True)}
    return ", ".join(f"{count:,} {kind} (such as {examples[kind]})" for kind, count in counts)


def count_suffixes(paths: Iterable[str]) -> str:
    """Return for example "900 .jpg, 100 .png", the most frequent first."""
    return _join_counts(Counter(os.path.splitext(path)[1].lower() for path in paths))


def _describe_others(scan: FolderScan) -> str:
    total = sum(scan.others.values())
    noun = "file" if total == 1 else "files"
    found = f"{total:,} {noun} ({_join_counts(scan.others)})" if total else "no files"
    if scan.unlistable:
        found += f"; not listable: {', '.join(scan.unlistable)}"
    return found


def _join_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {suffix or 'without suffix'}" for suffix, n in counts.most_common())


def _list_entries(folder: Path) -> str:
    """Name up to 20 entries of a folder, for an error message."""
    try:
        names = sorted(
            entry.name + ("/" if entry.is_dir() else "")
            for entry in folder.iterdir()
            if not entry.name.startswith(".")
        )
    except OSError as error:
        return f"what cannot be listed ({error.strerror})"
    if not names:
        return "nothing"
    rest = f" and {len(names) - _NAMED_AT_MOST:,} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + rest
