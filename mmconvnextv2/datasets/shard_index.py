"""Tar shards and the index that gives random access to the images in them: no registry."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from mmconvnextv2.datasets.image_reading import IMAGE_SUFFIXES, UnreadableImageError
from mmconvnextv2.datasets.image_scan import describe_bad
from mmconvnextv2.files import write_atomically

MANIFEST = "shards.json"
"""The file that names all shards of a folder. It is written last: without it nothing is read."""

SAMPLE = np.dtype([("offset", "<i8"), ("size", "<u4"), ("crc32", "<u4")])
"""The index's record of an image: where its bytes begin in the shard, how many, their CRC-32."""

_TOOL = "tools/dataset_converters/pack_shards.py"


class ShardError(ValueError):
    """Shards that are incomplete, changed or damaged; the message says what to do."""


def is_sharded(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds shards that are complete and indexed."""
    return Path(folder).expanduser().joinpath(MANIFEST).is_file()


def list_members(shard: str | os.PathLike[str]) -> list[tarfile.TarInfo]:
    """List the images of a shard from its tar headers, without reading the images.

    In the layout of WebDataset a member is named `KEY.EXTENSION`, and the extension begins at the
    first dot of the file's name. Images are the members whose whole extension is an image's: `jpg`
    but not `seg.png`.

    Args:
        shard: An uncompressed tar file.

    Returns:
        The headers in the order of the file.

    Raises:
        ShardError: It is no uncompressed tar file, or is damaged or cut short.
        OSError: It cannot be read.
    """
    with open(shard, "rb") as file:
        return list(_members(shard, file))


def index_shard(shard: str | os.PathLike[str]) -> np.ndarray:
    """Read a shard from end to end.

    Args:
        shard: An uncompressed tar file.

    Returns:
        A `SAMPLE` for each image, in the order of the file.

    Raises:
        ShardError: It is no uncompressed tar file, or is damaged or cut short.
        OSError: It cannot be read.
    """
    samples = []
    with open(shard, "rb") as file:
        for member in _members(shard, file):
            file.seek(member.offset_data)
            data = file.read(member.size)
            samples.append((member.offset_data, member.size, zlib.crc32(data)))
    return np.array(samples, dtype=SAMPLE)


def _members(shard: str | os.PathLike[str], file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of the images; the file's position is free to be moved in between."""
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
            for member in archive:
                extension = os.path.basename(member.name).partition(".")[2]
                if member.isreg() and f".{extension.lower()}" in IMAGE_SUFFIXES:
                    yield member
            # tarfile takes a damaged header for the end; the true end is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ShardError(
                    f"{os.fspath(shard)} is damaged or cut short at byte {archive.offset:,}: there "
                    "is neither a tar header nor the end of the archive"
                )
    except tarfile.TarError as error:
        raise ShardError(
            f"{os.fspath(shard)} is no complete, uncompressed tar file: {error}"
        ) from error


def index_path(shard: str | os.PathLike[str]) -> Path:
    """Where the index of a shard lies: `a/x.index.npy` for `a/x.tar`."""
    return Path(shard).with_suffix(".index.npy")


def save_index(shard: str | os.PathLike[str], samples: np.ndarray) -> None:
    """Write the index of a shard beside it, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, samples)
    write_atomically(index_path(shard), buffer.getvalue())


def load_index(shard: str | os.PathLike[str]) -> np.ndarray:
    """Read what `save_index` wrote.

    Raises:
        ShardError: There is no such file, or it is no index.
    """
    path = index_path(shard)
    try:
        samples = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ShardError(f"the index {path} cannot be read: {error}") from error
    if samples.dtype != SAMPLE or samples.ndim != 1:
        raise ShardError(f"{path} is no index of a shard: {samples.ndim}-d {samples.dtype}")
    return samples


def write_manifest(folder: str | os.PathLike[str]) -> Path:
    """Name all shards of a folder, with their sizes, in `shards.json`: from now on it is complete.

    Args:
        folder: A folder of shards, each with its index.

    Returns:
        The path of the file.

    Raises:
        ShardError: An index is missing, or there is no image in any shard.
    """
    shards = [
        dict(name=shard.name, bytes=shard.stat().st_size, images=len(load_index(shard)))
        for shard in sorted(Path(folder).glob("*.tar"))
    ]
    if not any(shard["images"] for shard in shards):
        raise ShardError(
            f"no image in {len(shards):,} shards of {folder}: members named KEY.EXTENSION are "
            f"looked for, with an extension of {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    text = json.dumps(dict(version=1, shards=shards), indent=1) + "\n"
    return write_atomically(Path(folder) / MANIFEST, text.encode())


class Shards(Sequence[dict[str, Any]]):
    """The images of all shards of a folder, as what `read_packed` needs to read one.

    It holds 16 bytes an image, in one array, and the shards' names. Items are
    `dict(shard=path, offset=..., size=..., crc32=...)`, in the order of shards and members.

    Args:
        folder: A folder with `shards.json`.

    Raises:
        ShardError: The folder has no `shards.json`, or shards are missing, changed or not indexed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        entries = _read_manifest(Path(folder))
        self.paths = [os.path.join(folder, entry["name"]) for entry in entries]
        self._ends = list(accumulate(entry["images"] for entry in entries))
        self._samples = np.empty(self._ends[-1], dtype=SAMPLE)
        bad = {}
        for number, entry in enumerate(entries):
            try:
                _check_size(self.paths[number], entry["bytes"])
                self.samples_of(number)[:] = _load_whole_index(self.paths[number], entry["images"])
            except (OSError, ValueError) as error:
                bad[self.paths[number]] = str(error)
        if bad:
            raise ShardError(
                f"{len(bad):,} of {len(entries):,} shards are not what {MANIFEST} says. Bring them "
                f"back, or index what is there with `python {_TOOL} index {folder}`:\n"
                f"{describe_bad(bad)}"
            )

    def samples_of(self, number: int) -> np.ndarray:
        """Return the index of one shard, as a view."""
        return self._samples[self._ends[number - 1] if number else 0 : self._ends[number]]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Say where an image is, or several."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        offset, size, crc32 = self._samples[position].item()
        shard = self.paths[bisect_right(self._ends, position)]
        return dict(shard=shard, offset=offset, size=size, crc32=crc32)


def _read_manifest(folder: Path) -> list[dict[str, Any]]:
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_bytes())["shards"]
        for entry in entries:
            entry["name"], entry["bytes"], entry["images"]
    except FileNotFoundError as error:
        raise ShardError(
            f"{folder} has no {MANIFEST}. If packing it was interrupted, run it again; shards of "
            f"another origin are indexed once with `python {_TOOL} index {folder}`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path} cannot be read as the list of shards ({error!r}): write it anew with "
            f"`python {_TOOL} index {folder}`"
        ) from error
    if not entries:
        raise ShardError(f"{path} names no shard")
    return entries


def _check_size(shard: str, expected: int) -> None:
    size = os.path.getsize(shard)
    if size != expected:
        raise ShardError(f"it has {size:,} bytes instead of {expected:,}")


def _load_whole_index(shard: str, expected: int) -> np.ndarray:
    samples = load_index(shard)
    if len(samples) != expected:
        raise ShardError(f"its index has {len(samples):,} images instead of {expected:,}")
    return samples


def read_packed(results: dict[str, Any]) -> dict[str, Any]:
    """Read the bytes of an image from its shard and check them: the first step of a pipeline.

    Required keys: `shard`, `offset`, `size`, `crc32`, as items of `Shards` have them. Added keys:
    `img_bytes`, and `img_path` ("shard.tar:name of the member", at most 255 characters of it).

    Args:
        results: A dict with the required keys.

    Returns:
        A dict with all of them.

    Raises:
        UnreadableImageError: The shard cannot be read, is cut short or holds other bytes.
    """
    shard, offset, size = results["shard"], results["offset"], results["size"]
    place = f"{shard}:byte {offset}"
    try:
        with open(shard, "rb") as file:
            # The last block of a member's header stands right before its data.
            file.seek(offset - tarfile.BLOCKSIZE)
            block = file.read(tarfile.BLOCKSIZE + size)
        header = tarfile.TarInfo.frombuf(
            block[: tarfile.BLOCKSIZE], encoding="utf-8", errors="surrogateescape"
        )
    except (OSError, tarfile.TarError) as error:
        raise UnreadableImageError(place, f"{type(error).__name__}: {error}") from error
    path = f"{shard}:{header.name}"
    data = block[tarfile.BLOCKSIZE :]
    if len(data) != size:
        raise UnreadableImageError(path, f"the shard ends after {len(data):,} of {size:,} bytes")
    if zlib.crc32(data) != results["crc32"]:
        raise UnreadableImageError(path, "its bytes are not those that were indexed (CRC-32)")
    return results | dict(img_path=path, img_bytes=data)
