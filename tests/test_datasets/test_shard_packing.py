"""Packing, indexing and verifying shards: complete or not there, whatever happens in between."""

import errno
import io
import os
import random
import signal
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from mmconvnextv2 import files as writing
from mmconvnextv2.datasets import shard_index, shard_packing
from mmconvnextv2.datasets.shard_index import (
    ShardError,
    Shards,
    index_path,
    index_shard,
    list_members,
    read_packed,
)
from mmconvnextv2.datasets.shard_packing import (
    index_folder,
    member_names,
    pack_folder,
    verify_folder,
)

pytestmark = pytest.mark.unit

MAX_BYTES = 6000


def write_images(folder, count, start=0):
    """Write images of noise, so that no two files are alike; their names do not sort by number."""
    for number in range(start, start + count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), np.uint8)
        path = folder / f"class.{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        os.utime(path, (1_000_000 + number, 1_000_000 + number))
    return folder


@pytest.fixture
def source(tmp_path):
    return write_images(tmp_path / "source", 30)


@pytest.fixture
def packed(source, tmp_path):
    pack_folder(source, tmp_path / "packed", max_bytes=MAX_BYTES)
    return tmp_path / "packed"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(folder):
    """Name and bytes of all members, as the standard library extracts them."""
    out = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                assert member.name not in out
                out[member.name] = shard.extractfile(member).read()
    return out


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_file_is_there_byte_for_byte_and_in_order(source, packed):
    assert members(packed) == files(source)
    assert list(members(packed)) == sorted(files(source))
    assert len(Shards(packed)) == verify_folder(packed) == 30


def test_shards_are_as_full_as_they_may_be(packed):
    sizes = [path.stat().st_size for path in sorted(packed.glob("*.tar"))]
    assert len(sizes) > 4
    # tarfile rounds up to 10,240 bytes; the members are counted without that.
    ends = [list_members(path)[-1] for path in sorted(packed.glob("*.tar"))]
    used = [end.offset_data + -(-end.size // 512) * 512 for end in ends]
    assert max(used) <= MAX_BYTES
    first = [list_members(path)[0] for path in sorted(packed.glob("*.tar"))]
    taken = [-(-one.size // 512) * 512 + 512 for one in first]
    assert all(u + t > MAX_BYTES for u, t in zip(used, taken[1:], strict=False))


def test_packing_is_a_function_of_the_folder(source, packed, tmp_path):
    pack_folder(source, tmp_path / "again", max_bytes=MAX_BYTES, num_threads=1)
    assert contents(tmp_path / "again") == contents(packed)


def test_an_image_larger_than_a_shard_gets_its_own(source, tmp_path):
    pack_folder(source, tmp_path / "out", max_bytes=1)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 30


def test_nothing_in_the_source_changes(source, tmp_path):
    before = [(p, p.stat().st_mtime_ns) for p in sorted(source.rglob("*"))], files(source)
    pack_folder(source, tmp_path / "out")
    assert ([(p, p.stat().st_mtime_ns) for p in sorted(source.rglob("*"))], files(source)) == before


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jpg", "b/c.png"], ["a.jpg", "b/c.png"]),
        (["photo.v2.jpg", "photo.v3.jpg"], ["photo%2Ev2.jpg", "photo%2Ev3.jpg"]),
        (["a.gif", "a.jpg", "a.png", "b.png"], ["a.gif", "a%x1.jpg", "a%x2.png", "b.png"]),
        (["100%.png", "dir.d/a.JPG"], ["100%25.png", "dir.d/a.JPG"]),
        (["x/a.png", "y/a.png"], ["x/a.png", "y/a.png"]),
    ],
)
def test_member_names(paths, names):
    assert list(member_names([f"root/{path}" for path in paths], "root")) == names
    assert list(member_names([f"/{path}" for path in paths], "/")) == names


def test_awkward_names_survive(tmp_path):
    """Long, not ASCII, not even UTF-8, with dots and with equal stems."""
    names = ["ü 1.png", "n" * 150 + ".png", "same.jpg", "same.png", "dot.ted.png", "\udcff.png"]
    (tmp_path / "source").mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer := io.BytesIO(), "PNG")
        (tmp_path / "source" / name).write_bytes(buffer.getvalue())
    pack_folder(tmp_path / "source", tmp_path / "out")
    expected = {"same.png": "same%x1.png", "dot.ted.png": "dot%2Eted.png"}
    got = members(tmp_path / "out")
    assert set(got) == {expected.get(name, name) for name in names}
    assert sorted(got.values()) == sorted(files(tmp_path / "source").values())
    # Again: names are read back as they were written.
    pack_folder(tmp_path / "source", tmp_path / "out")
    assert verify_folder(tmp_path / "out") == 6


def test_a_finished_folder_is_left_alone_and_new_files_are_added(source, packed):
    before = {p: p.stat().st_mtime_ns for p in packed.glob("*.tar")}
    pack_folder(source, packed, max_bytes=MAX_BYTES)
    assert {p: p.stat().st_mtime_ns for p in packed.glob("*.tar")} == before
    write_images(source / "zz", 4, start=100)
    pack_folder(source, packed, max_bytes=MAX_BYTES)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert members(packed) == files(source)


@pytest.mark.parametrize("change", ["content", "rename", "remove", "insert"])
def test_a_source_that_has_changed_is_refused(source, packed, change):
    path = source / "class.0" / "003.png"
    if change == "content":
        path.write_bytes(b"other")
    elif change == "rename":
        path.rename(path.with_name("003b.png"))
    elif change == "remove":
        path.unlink()
    else:
        write_images(source / "class.0", 1, start=3)
    before = contents(packed)
    with pytest.raises(ShardError, match=r"shard-00000\d\.tar holds .*has changed.*new folder"):
        pack_folder(source, packed, max_bytes=MAX_BYTES)
    assert contents(packed) == before


def test_shards_of_something_else_are_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "laion-00000.tar").touch()
    with pytest.raises(ShardError, match=r"holds laion-00000\.tar, which does not follow"):
        pack_folder(source, tmp_path / "out")


def test_a_folder_that_cannot_be_listed_is_no_folder_without_images(source, tmp_path, monkeypatch):
    """Permissions do not bind root, so the refusal is simulated."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("class.1"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ShardError, match=r"images would be left out:\n.*class\.1"):
        pack_folder(source, tmp_path / "out")


def run_in_child(job, kill_at):
    """Run a job in a child process that is killed at a line of the packing code; count the lines.

    Returns:
        The exit status of the child as `os.wait` gives it, and how many lines it ran, if it lived.
    """
    watched = {module.__file__ for module in (shard_packing, shard_index, writing)}
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if frame.f_code.co_filename not in watched:
                return None
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        status = 1
        try:
            sys.settrace(trace)
            job()
            sys.settrace(None)
            os.write(send, str(count).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    with os.fdopen(receive) as pipe:
        lines = pipe.read()
    return os.waitpid(child, 0)[1], int(lines or 0)


@pytest.mark.fault(
    11,
    "packing a folder into shards killed (SIGKILL) at random lines",
    "every shard complete or not there; run again, it ends with all files",
)
def test_killed_at_any_moment_it_goes_on(source, packed, tmp_path, soak_count):
    out = tmp_path / "killed"

    def pack():
        pack_folder(source, out, max_bytes=MAX_BYTES, num_threads=2)

    status, lines = run_in_child(pack, kill_at=None)
    assert status == 0
    assert contents(out) == contents(packed)
    for path in out.iterdir():
        path.unlink()
    moments = random.Random(0)
    kills = 0
    for _ in range(soak_count(25, 300)):
        status, _ = run_in_child(pack, kill_at=moments.randrange(1, lines // 2))
        if status == 0:  # earlier kills had left little to do: begin anew
            assert contents(out) == contents(packed)
            for path in out.iterdir():
                path.unlink()
            continue
        kills += 1
        assert os.WTERMSIG(status) == signal.SIGKILL
        # What has its name is complete, and without the list nothing counts as a data set.
        for path in out.glob("shard-*.tar"):
            assert path.read_bytes() == (packed / path.name).read_bytes()
        if not (out / "shards.json").exists():
            with pytest.raises(ShardError, match="interrupted, run it again"):
                Shards(out)
    assert kills > 10
    pack()
    assert contents(out) == contents(packed)


@pytest.mark.fault(
    11, "disk full while a shard is written", "packing stops with the message, complete shards stay"
)
def test_a_full_disk_stops_with_the_name_of_the_shard(source, packed, tmp_path, monkeypatch):
    add, calls = tarfile.TarFile.addfile, []

    def fill(self, info, data):
        calls.append(info)
        if len(calls) == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, info, data)

    monkeypatch.setattr(tarfile.TarFile, "addfile", fill)
    out = tmp_path / "full"
    with pytest.raises(OSError, match=r"No space left on device: '.*shard-00000\d\.tar'"):
        pack_folder(source, out, max_bytes=MAX_BYTES)
    assert not list(out.glob(".*"))
    done = sorted(out.glob("*.tar"))
    assert len(done) >= 2
    assert all(path.read_bytes() == (packed / path.name).read_bytes() for path in done)
    monkeypatch.undo()
    pack_folder(source, out, max_bytes=MAX_BYTES)
    assert contents(out) == contents(packed)


def test_a_file_that_vanishes_or_changes_stops_it(source, tmp_path, monkeypatch):
    read = shard_packing._read
    path = source / "class.1" / "004.png"

    def vanish(file):
        if file.path == str(path):
            path.unlink(missing_ok=True)
        return read(file)

    monkeypatch.setattr(shard_packing, "_read", vanish)
    with pytest.raises(FileNotFoundError, match=r"004\.png"):
        pack_folder(source, tmp_path / "out")

    def grow(file):
        with open(file.path, "ab") as image:
            image.write(b"more")
        return read(file)

    monkeypatch.setattr(shard_packing, "_read", grow)
    with pytest.raises(ShardError, match=r"\.png changed while it was being packed"):
        pack_folder(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_shard_that_reads_back_differently_never_gets_its_name(source, tmp_path, monkeypatch):
    def flip(path):
        data = bytearray(path.read_bytes())
        data[512 + 50] ^= 1
        path.write_bytes(data)
        return index_shard(path)

    monkeypatch.setattr(shard_packing, "index_shard", flip)
    with pytest.raises(ShardError, match=r"shard-000000\.tar reads back other than it was written"):
        pack_folder(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.fault(11, "one byte of a shard flipped", "verify names the shard")
def test_verify_finds_every_flipped_byte(packed, soak_count):
    shard = packed / "shard-000002.tar"
    good = shard.read_bytes()
    # In the header's own checksum some bits mean nothing.
    places = [
        place
        for member in list_members(shard)
        for place in range(member.offset, member.offset_data + member.size)
        if not 148 <= place - member.offset < 156
    ]
    for place in random.Random(0).sample(places, soak_count(40, 1000)):
        broken = bytearray(good)
        broken[place] ^= 0x10
        shard.write_bytes(broken)
        with pytest.raises(ShardError, match=r"1 of \d+ shards are damaged:\n.*shard-000002\.tar"):
            verify_folder(packed)
    shard.write_bytes(good)
    assert verify_folder(packed) == 30


def test_a_cut_shard_is_no_shorter_shard(packed):
    """`tarfile` takes a damaged header for the end of the archive, and so would lose images."""
    shard = packed / "shard-000001.tar"
    good = shard.read_bytes()
    second = list_members(shard)[1]
    for size in (second.offset, second.offset + 100, second.offset_data + 10):
        shard.write_bytes(good[:size])
        with pytest.raises(ShardError, match=r"shard-000001\.tar is (damaged|no complete)"):
            index_shard(shard)
    broken = bytearray(good)
    broken[second.offset] ^= 1
    shard.write_bytes(broken)
    with tarfile.open(shard) as archive:
        assert len(archive.getmembers()) == 1
    with pytest.raises(ShardError, match=f"cut short at byte {second.offset:,}"):
        index_shard(shard)


def test_compressed_and_foreign_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as shard:
        shard.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(ShardError, match=r"a\.tar is no complete, uncompressed tar file"):
        index_folder(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"a\.tar is no complete, uncompressed tar file"):
        index_folder(tmp_path)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \.tar file in"):
        index_folder(tmp_path)


def test_shards_without_images_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        shard.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(ShardError, match="no image in 1 shards"):
        index_folder(tmp_path)


def test_index_is_that_of_packing_and_is_made_anew_for_a_newer_shard(packed):
    before = contents(packed)
    for path in packed.glob("*.npy"):
        path.unlink()
    (packed / "shards.json").unlink()
    index_folder(packed)
    assert contents(packed) == before
    index = index_path(packed / "shard-000000.tar")
    index.write_bytes(b"broken")
    with pytest.raises(ShardError, match=r"shard-000000\.index\.npy cannot be read"):
        index_folder(packed)
    os.utime(index, (0, 0))
    index_folder(packed)
    assert contents(packed) == before


def test_members_that_are_no_images_are_left_out(tmp_path):
    """Of a WebDataset sample of picture, class and label map the picture alone is an image."""
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("0.JPG", "0.cls", "0.json", "0.seg.png", "1.webp", "dir.d/2.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            shard.addfile(info, io.BytesIO(b"abc"))
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        shard.addfile(folder)
    index_folder(tmp_path)
    shards = Shards(tmp_path)
    names = [read_packed(place)["img_path"] for place in shards]
    assert names == [f"{tmp_path}/a.tar:{name}" for name in ("0.JPG", "1.webp", "dir.d/2.png")]


@pytest.mark.parametrize("arguments", [dict(max_bytes=0), dict(num_threads=0)])
def test_arguments_outside_what_is_allowed(source, tmp_path, arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        pack_folder(source, tmp_path / "out", **arguments)
