"""A list of very many paths that takes little more memory than their names are long."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import overload


class PathList(Sequence[str]):
    """Paths, as a list of strings has them, in one buffer of bytes and one array of numbers.

    A folder that follows on itself is stored once. 14 million ImageNet names so take some 28 bytes
    each, where strings take 120. Forked processes share the memory: reading an item touches no
    count of references inside of it.

    Args:
        paths: What to begin with.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._folders: list[str] = []
        self._firsts = array("q")  # number of the first path in each folder
        self._names = bytearray()
        self._ends = array("q")  # where each name ends in the buffer
        for path in paths:
            self.append(path)

    def append(self, path: str) -> None:
        """Add a path at the end."""
        folder, slash, name = path.rpartition(os.sep)
        folder += slash
        if not self._folders or folder != self._folders[-1]:
            self._folders.append(folder)
            self._firsts.append(len(self._ends))
        self._names += os.fsencode(name)
        self._ends.append(len(self._names))

    def without(self, dropped: Container[str]) -> PathList:
        """Return the list of all paths that are not among those to drop."""
        return PathList(path for path in self if path not in dropped)

    def __len__(self) -> int:
        """Return the number of paths."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> PathList: ...

    def __getitem__(self, index: int | slice) -> str | PathList:
        """Return one path, or a list of several."""
        if isinstance(index, slice):
            return PathList(self[position] for position in range(*index.indices(len(self))))
        position = range(len(self))[index]
        start = self._ends[position - 1] if position else 0
        folder = self._folders[bisect_right(self._firsts, position) - 1]
        return folder + os.fsdecode(bytes(self._names[start : self._ends[position]]))

    def __iter__(self) -> Iterator[str]:
        """Yield all paths, in less time than by their numbers."""
        start = 0
        for number, folder in enumerate(self._folders):
            last = number + 1 == len(self._folders)
            stop = len(self) if last else self._firsts[number + 1]
            for position in range(self._firsts[number], stop):
                end = self._ends[position]
                yield folder + os.fsdecode(bytes(self._names[start:end]))
                start = end
