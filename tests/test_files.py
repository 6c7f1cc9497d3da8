"""Files are whole and on the disk before they take their names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mmconvnextv2.files import remove_unfinished, replace_when_complete, write_atomically

pytestmark = pytest.mark.unit

FSYNC, REPLACE = os.fsync, os.replace


def path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names descriptors through /proc")
def test_content_then_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be had here; what survives one is what was synced, in this order."""
    path = write_atomically(tmp_path / "a.bin", b"old")
    done: list[tuple[str, str, bytes]] = []

    def fsync(descriptor: int) -> None:
        done.append(("fsync", path_of(descriptor), path.read_bytes()))
        FSYNC(descriptor)

    def replace(source: Path, target: Path) -> None:
        done.append(("replace", str(source), path.read_bytes()))
        REPLACE(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(path, b"new")
    part = done[0][1]
    assert Path(part).parent == tmp_path and part != str(path), "a rename within one filesystem"
    assert done == [
        ("fsync", part, b"old"),
        ("replace", part, b"old"),
        ("fsync", str(tmp_path), b"new"),
    ]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_cannot_take_the_content_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = write_atomically(tmp_path / "a.bin", b"old")

    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(code)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_filesystem_without_folder_sync_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if Path(path_of(descriptor)).is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    assert write_atomically(tmp_path / "a.bin", b"new").read_bytes() == b"new"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with replace_when_complete(tmp_path / "epoch_3.pth") as part:
        left = part
        part.write_bytes(b"half")
    left.write_bytes(b"half")
    mine = [tmp_path / name for name in (".hidden.part", "a.part", ".epoch_3.pth", "epoch_3.pth")]
    for path in mine:
        path.write_bytes(b"mine")
    assert remove_unfinished(tmp_path) == [left]
    assert sorted(tmp_path.iterdir()) == sorted(mine)
