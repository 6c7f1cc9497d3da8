"""Pack a folder of images into tar shards, index shards of other origin, verify either."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mmconvnextv2.datasets.image_scan import describe_bad, resolve_folder, scan_folder
from mmconvnextv2.datasets.shard_index import (
    SAMPLE,
    ShardError,
    Shards,
    index_path,
    index_shard,
    list_members,
    save_index,
    write_manifest,
)
from mmconvnextv2.files import remove_unfinished, replace_when_complete

_READ_AHEAD = 64
"""Files that are read together, and so held in memory."""


class _File(NamedTuple):
    path: str
    name: str
    size: int
    mtime: int


def pack_folder(
    source: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    max_bytes: int = 10**9,
    num_threads: int = 8,
    progress: bool = False,
) -> Path:
    """Pack all images of a folder, as `scan_folder` finds them, into tar shards.

    Files are copied byte for byte and in order into shard-000000.tar and so on. Their names stay,
    relative to the folder, but for dots before the suffix, at which WebDataset would cut: see
    `member_names`. Each shard is read back from the disk and compared by CRC-32 before it takes
    its name, and only then is it indexed. `shards.json` is written last, so that what is not
    complete is never taken for a data set.

    Interrupted, it goes on where it stopped: shards whose members have the names, sizes and times
    of the files are kept. So it also adds files that come behind those that are packed.

    Args:
        source: The folder; it is only read.
        out_dir: Folder of the shards: new, empty, or with shards of the same source.
        max_bytes: Size of a shard, about: as many images as fit, but at least one.
        num_threads: Files to read at a time.
        progress: Show a bar on a terminal.

    Returns:
        The path of `shards.json`.

    Raises:
        FileNotFoundError: The folder does not exist, or a file has vanished.
        ValueError: There is no image in the folder, or an argument is outside what is allowed.
        ShardError: A part of the folder cannot be listed; `out_dir` holds shards of other files; a
            shard cannot be read back as it was written.
        OSError: A file cannot be read, or the disk is full. Shards that are complete stay.
    """
    if max_bytes < 1 or num_threads < 1:
        raise ValueError(
            f"max_bytes and num_threads must be at least 1, got {max_bytes}, {num_threads}"
        )
    folder = resolve_folder(source)
    scan = scan_folder(folder)
    if scan.unlistable:
        raise ShardError(f"images would be left out:\n{describe_bad(scan.unlistable)}")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    done = _done_shards(out)
    files = _files(scan.images, folder)
    with (
        _bar("packing", len(scan.images), progress) as advance,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        for shard in done:
            advance(_check_unchanged(shard, files))
        for number, group in enumerate(_groups(files, max_bytes), start=len(done)):
            _write_shard(out / _shard_name(number), group, pool, advance)
    return write_manifest(out)


def index_folder(
    folder: str | os.PathLike[str], *, num_threads: int = 8, progress: bool = False
) -> Path:
    """Index the shards of a folder, of whatever origin, by reading each from end to end.

    An index that is there is kept, unless its shard is newer.

    Args:
        folder: Folder with .tar files in WebDataset's layout.
        num_threads: Shards to read at a time.
        progress: Show a bar on a terminal.

    Returns:
        The path of `shards.json`.

    Raises:
        FileNotFoundError: There is no .tar file in the folder.
        ShardError: A shard is damaged or compressed, or there is no image in any.
        OSError: A shard cannot be read, or an index cannot be written.
    """
    shards = sorted(Path(folder).glob("*.tar"))
    if not shards:
        raise FileNotFoundError(
            f"no .tar file in {os.fspath(folder)}; compressed shards have to be unpacked to .tar"
        )
    stale = [shard for shard in shards if not _is_indexed(shard)]

    def index(shard: Path) -> None:
        save_index(shard, index_shard(shard))

    with _bar("indexing", len(stale), progress) as advance, ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(index, stale):
            advance(1)
    return write_manifest(folder)


def verify_folder(
    folder: str | os.PathLike[str], *, num_threads: int = 8, progress: bool = False
) -> int:
    """Read all shards from end to end and compare every image with the index.

    Args:
        folder: Folder of shards with their `shards.json`.
        num_threads: Shards to read at a time.
        progress: Show a bar on a terminal.

    Returns:
        The number of images.

    Raises:
        ShardError: Shards are missing, changed or damaged; the message names them.
    """
    shards = Shards(folder)

    def fault(number: int) -> str | None:
        try:
            found = index_shard(shards.paths[number])
            return _describe_difference(found, shards.samples_of(number))
        except (OSError, ShardError) as error:
            return str(error)

    bad = {}
    with (
        _bar("verifying", len(shards.paths), progress) as advance,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        faults = pool.map(fault, range(len(shards.paths)))
        for path, reason in zip(shards.paths, faults, strict=True):
            advance(1)
            if reason is not None:
                bad[path] = reason
    if bad:
        raise ShardError(
            f"{len(bad):,} of {len(shards.paths):,} shards are damaged:\n{describe_bad(bad)}"
        )
    return len(shards)


def member_names(paths: Iterable[str], root: str | os.PathLike[str]) -> Iterator[str]:
    """Name files in a tar file so that WebDataset takes each for a sample of its own.

    It ends a sample's key at the first dot of a file's name, and joins neighbours of one key. So
    dots before the suffix become `%2E` (and `%` becomes `%25`), and neighbours that differ in
    their suffix alone are numbered: a.jpg, a%x1.png.

    Args:
        paths: Files below `root`, each with a suffix.
        root: The folder that names are relative to, as it begins each path.

    Yields:
        One name for each path; all are different if the paths are.
    """
    prefix = len(os.path.join(root, ""))
    last_key, repeated = "", 0
    for path in paths:
        folder, slash, file = path[prefix:].rpartition("/")
        stem, suffix = os.path.splitext(file)
        key = folder + slash + stem.replace("%", "%25").replace(".", "%2E")
        repeated = repeated + 1 if key == last_key else 0
        last_key = key
        yield key + (f"%x{repeated}" if repeated else "") + suffix


def _files(paths: Sequence[str], root: Path) -> Iterator[_File]:
    for path, name in zip(paths, member_names(paths, root), strict=True):
        status = os.stat(path)
        yield _File(path, name, status.st_size, int(status.st_mtime))


def _groups(files: Iterable[_File], max_bytes: int) -> Iterator[list[_File]]:
    """Cut the files into what fits into a shard each, counting headers and padding."""
    group: list[_File] = []
    size = 0
    for file in files:
        blocks = 1 + -(-file.size // tarfile.BLOCKSIZE)
        if group and size + blocks * tarfile.BLOCKSIZE > max_bytes:
            yield group
            group, size = [], 0
        group.append(file)
        size += blocks * tarfile.BLOCKSIZE
    if group:
        yield group


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _done_shards(out: Path) -> list[Path]:
    """Find the shards of an earlier call, and remove what it left half-written."""
    remove_unfinished(out)
    done: list[Path] = []
    while (shard := out / _shard_name(len(done))).exists() and index_path(shard).exists():
        done.append(shard)
    expected = {*done, shard}
    if others := [path.name for path in sorted(out.glob("*.tar")) if path not in expected]:
        raise ShardError(
            f"{out} holds {others[0]}, which does not follow on {len(done):,} complete shards: "
            "choose a new folder"
        )
    return done


def _check_unchanged(shard: Path, files: Iterator[_File]) -> int:
    """Check that a shard holds the next files, and return how many."""
    packed = [(member.name, member.size, member.mtime) for member in list_members(shard)]
    expected = [(file.name, file.size, file.mtime) for file in islice(files, len(packed))]
    if packed != expected:
        pairs = zip(packed, [*expected, *[None] * len(packed)], strict=False)
        first = next(old[0] for old, new in pairs if old != new)
        raise ShardError(
            f"{shard} holds {first}, and that is not the next file of the source, or has another "
            "size or time there: the folder was packed from something else, or the source has "
            "changed. Choose a new folder for the shards"
        )
    return len(packed)


def _write_shard(
    target: Path, files: list[_File], pool: ThreadPoolExecutor, advance: Callable[[int], None]
) -> None:
    """Write one shard, read it back, give it its name, index it."""
    with replace_when_complete(target) as part:
        try:
            checksums = _write_members(part, files, pool, advance)
        except OSError as error:
            # A full disk is reported without a name.
            error.filename = error.filename or os.fspath(target)
            raise
        samples = index_shard(part)
        if samples["crc32"].tolist() != checksums:
            raise ShardError(f"{target} reads back other than it was written: the disk is faulty")
    save_index(target, samples)


def _write_members(
    part: Path, files: list[_File], pool: ThreadPoolExecutor, advance: Callable[[int], None]
) -> list[int]:
    checksums = []
    form = tarfile.PAX_FORMAT
    with open(part, "wb") as out:
        with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as tar:
            for start in range(0, len(files), _READ_AHEAD):
                batch = files[start : start + _READ_AHEAD]
                for file, data in zip(batch, pool.map(_read, batch), strict=True):
                    info = tarfile.TarInfo(file.name)
                    info.size, info.mtime = file.size, file.mtime
                    tar.addfile(info, io.BytesIO(data))
                    checksums.append(zlib.crc32(data))
                advance(len(batch))
        out.flush()
        os.fsync(out.fileno())
        # Dropped from memory, the file is read back from the disk itself.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return checksums


def _read(file: _File) -> bytes:
    data = Path(file.path).read_bytes()
    if len(data) != file.size:
        raise ShardError(f"{file.path} changed while it was being packed; run it again")
    return data


def _is_indexed(shard: Path) -> bool:
    index = index_path(shard)
    return index.exists() and index.stat().st_mtime_ns >= shard.stat().st_mtime_ns


def _describe_difference(found: np.ndarray, expected: np.ndarray) -> str | None:
    assert found.dtype == expected.dtype == SAMPLE
    if len(found) != len(expected):
        return f"{len(found):,} images instead of {len(expected):,}"
    different = np.flatnonzero(found != expected)
    if not len(different):
        return None
    offset = int(expected["offset"][different[0]])
    return (
        f"{len(different):,} of {len(found):,} images are not what was indexed (CRC-32), the first "
        f"at byte {offset:,}"
    )


@contextmanager
def _bar(text: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    with Progress(console=console, disable=not (show and console.is_terminal)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)
