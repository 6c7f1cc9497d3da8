"""One folder with every kind of bad image: counted, named once, replaced, capped, never changed."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from torch.utils.data import DataLoader

from mmconvnextv2.apis.pretrain import pretrain
from mmconvnextv2.datasets import BadImagesError, ImageFolder, UnreadableImageError
from mmconvnextv2.datasets import image_folder as module
from mmconvnextv2.datasets.raster_reading import read_raster, read_raster_header

pytestmark = pytest.mark.integration

CROP = [{"type": "LoadRandomResizedCrop", "scale": 32}]
NUM_PLAIN = 20

ODD_BUT_GOOD = {"animated.gif", "cmyk.jpg", "png_inside.jpg", "wide.jpg"}
BAD_HEADERS = {
    "bomb.png": "DecompressionBombError",
    "empty.jpg": "0 bytes",
    "forbidden.png": "PermissionError",
    "no_link.jpg": "FileNotFoundError",
    "not_utf8_\udcff.jpg": "cannot identify",
    "one_pixel.png": "1x1 pixels",
    "text.jpg": "cannot identify",
}
BAD_BODIES = {"plain_05_cut.jpg": "truncated", "plain_11_cut.png": "truncated"}
GONE = "plain_16_gone.png"


def noise(size: tuple[int, int] = (70, 80), mode: str = "RGB") -> Image.Image:
    width, height = size
    channels = {"RGB": 3, "CMYK": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels, mode)


def half_of(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def bomb_png() -> bytes:
    """A few bytes that announce 60,000 x 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", b""), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Plain images, odd but good ones, bad ones; one more, `GONE`, is there to vanish."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(NUM_PLAIN):
        noise().save(folder / f"plain_{i:02d}.png")
    frames = [Image.new("P", (40, 40), colour) for colour in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    noise(mode="CMYK").save(folder / "cmyk.jpg")
    noise().save(folder / "png_inside.jpg", "PNG")
    noise((20_000, 40)).save(folder / "wide.jpg")
    noise().save(folder / GONE)

    noise().save(folder / "forbidden.png")
    (folder / "bomb.png").write_bytes(bomb_png())
    (folder / "empty.jpg").touch()
    (folder / "no_link.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "text.jpg").write_text("this is not a picture")
    Path(os.fsdecode(os.fsencode(folder) + b"/not_utf8_\xff.jpg")).write_text("nor is this")
    Image.new("RGB", (1, 1)).save(folder / "one_pixel.png")
    (folder / "plain_05_cut.jpg").write_bytes(half_of(noise(), "JPEG"))
    (folder / "plain_11_cut.png").write_bytes(half_of(noise(), "PNG"))
    (folder / "notes.txt").touch()

    really_open = builtins.open

    def refuse(file: object, *arguments: object, **options: object) -> object:
        if str(file).endswith("forbidden.png"):  # root reads whatever the permissions say
            raise PermissionError(13, "Permission denied", file)
        return really_open(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    return folder


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with what the dataset logs, in this process and in those of a loader."""
    file = tmp_path / "log.txt"

    def append(message: str, *_: object) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(message + "\n")

    monkeypatch.setattr(module, "print_log", append)
    return file


def fingerprints(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Content, mode and time of every file, by name."""
    found = {}
    for path in folder.iterdir():
        status = path.lstat()
        content = b"" if path.is_symlink() else read_bytes(path)
        digest = hashlib.sha256(content).hexdigest()
        found[path.name] = (digest, status.st_mode, status.st_mtime_ns)
    return found


def read_bytes(path: Path) -> bytes:
    with io.FileIO(path) as file:
        return file.readall()


def read_epoch(loader: DataLoader) -> list[str]:
    """Names of the images that came, each checked for its shape."""
    samples = [sample for batch in loader for sample in batch]
    assert all(sample["img"].shape == (32, 32, 3) for sample in samples)
    return sorted(Path(sample["img_path"]).name for sample in samples)


@pytest.mark.fault(
    7,
    "truncated, empty, foreign, 1x1, forbidden, vanished, huge and misnamed images in one folder",
    "each named once by all loader processes, replaced by the next image, no file changed",
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_kind_in_one_folder(photos: Path, log: Path, num_workers: int) -> None:
    before = fingerprints(photos)
    dataset = ImageFolder(photos, pipeline=CROP, max_bad_share=0.4)
    context = "fork" if num_workers else None
    loader = DataLoader(
        dataset, 4, num_workers=num_workers, collate_fn=list, multiprocessing_context=context
    )
    plain = {f"plain_{i:02d}.png" for i in range(NUM_PLAIN)}
    readable = plain | ODD_BUT_GOOD
    num_images = len(readable) + len(BAD_BODIES) + 1

    first = read_epoch(loader)
    assert set(first) == readable | {GONE}
    assert len(first) == num_images
    (photos / GONE).unlink()
    second, third = read_epoch(loader), read_epoch(loader)
    assert set(second) == readable and len(second) == num_images and third == second

    text = log.read_text(encoding="utf-8")
    assert f"{num_images} images" in text
    assert f"{num_images + len(BAD_HEADERS)} headers checked, {len(BAD_HEADERS)} bad" in text
    assert "1 other files" in text
    for name, reason in {**BAD_HEADERS, **BAD_BODIES, GONE: "FileNotFoundError"}.items():
        name = name.replace("\udcff", "\\xff")
        (line,) = (line for line in text.splitlines() if f"/{name}:" in line)
        assert reason in line
    assert not any(name in text for name in readable)

    before.pop(GONE)
    assert fingerprints(photos) == before


@pytest.mark.fault(
    7, "more bad images than the share allows, met by several processes", "training stops"
)
def test_the_share_counts_what_all_loader_processes_meet(tmp_path: Path, log: Path) -> None:
    """Six of 100 are bad and five allowed: no process of two meets more than three."""
    for i in range(100):
        noise((8, 8)).save(tmp_path / f"{i:03d}.png")
    for i in (1, 6, 31, 36, 61, 66):  # in batches for the one and the other process
        (tmp_path / f"{i:03d}.png").write_bytes(half_of(noise(), "PNG"))

    def loader(share: float) -> DataLoader:
        dataset = ImageFolder(tmp_path, pipeline=CROP, max_bad_share=share)
        return DataLoader(
            dataset, 5, num_workers=2, collate_fn=list, multiprocessing_context="fork"
        )

    assert len(read_epoch(loader(0.06))) == 100
    with pytest.raises(BadImagesError, match=r"images: 6 of 100 in the folder(.|\n)*and 3 more"):
        read_epoch(loader(0.05))


@pytest.mark.fault(7, "a run on a folder with bad images", "it ends; its log names each once")
def test_a_run_trains_on_what_is_left(photos: Path, tmp_path: Path) -> None:
    before = fingerprints(photos)
    result = pretrain(
        photos,
        tmp_path / "out",
        arch="atto",
        epochs=2,
        batch_size=8,
        image_size=64,
        num_workers=2,
        cfg_options={
            "train_dataloader.dataset.dataset.max_bad_share": 0.4,
            "train_dataloader.persistent_workers": False,
        },
    )
    assert result.checkpoint.is_file()
    (file,) = (tmp_path / "out").glob("*/*.log")
    text = file.read_text(encoding="utf-8")
    for name in BAD_HEADERS | BAD_BODIES:
        assert text.count("/" + name.replace("\udcff", "\\xff") + ":") == 1, name
    assert fingerprints(photos) == before


def write_tiff_bomb(path: Path) -> Path:
    """A TIFF of a few kilobytes that announces 40,000 x 40,000 pixels, made of one small one."""
    tifffile.imwrite(path, np.zeros((2, 2), np.uint8), metadata=None)
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257, 278):  # width, length, rows
            struct.pack_into("<HII", data, entry + 2, 4, 1, 40_000)
    path.write_bytes(data)
    return path


@pytest.mark.fault(7, "a decompression bomb, as PNG and as TIFF", "refused from its header")
@pytest.mark.parametrize("read", [read_raster, read_raster_header])
def test_a_tiff_that_is_a_bomb_is_refused(tmp_path: Path, read: Callable) -> None:
    path = write_tiff_bomb(tmp_path / "bomb.tif")
    with pytest.raises(UnreadableImageError, match=r"bomb\.tif: 1,600,000,000 bytes in a file of"):
        read(path)


def test_a_tile_far_larger_than_its_image_is_refused(tmp_path: Path) -> None:
    """It would be decoded whole."""
    pixels = np.zeros((24, 33), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        tiff.pages.first.tags["TileWidth"].overwrite(201_326_608)
    with pytest.raises(UnreadableImageError, match="taken for a decompression bomb"):
        read_raster(tmp_path / "a.tif")


def test_a_large_tiff_that_is_none_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size alone refuses nothing: neither stored as it is, nor compressed as far as noise."""
    monkeypatch.setattr("mmconvnextv2.datasets.raster_reading.BOMB_BYTES", 1_000)
    pixels = np.asarray(noise((200, 100)))
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", pixels, compression=compression, photometric="rgb")
        np.testing.assert_array_equal(read_raster(tmp_path / "a.tif"), pixels)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2_000, 2_000), np.uint8), compression="zlib")
    with pytest.raises(UnreadableImageError, match="taken for a decompression bomb"):
        read_raster(tmp_path / "a.tif")


def test_a_pipe_behind_a_link_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.tif").symlink_to(tmp_path / "pipe")
    with pytest.raises(UnreadableImageError, match="0 bytes"):
        read_raster(tmp_path / "a.tif")
