"""`ShardedImages`: what a folder gives, from tar shards, for any ranks, workers and resume."""

import os
import pickle
import tarfile
from collections import Counter

import mmengine.dataset.sampler
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from narrowing import ARCH, CHANNELS
from PIL import Image
from torch.utils.data import DataLoader

from mmconvnextv2.apis.launch import USER_ERRORS
from mmconvnextv2.apis.pretrain import pretrain
from mmconvnextv2.datasets import (
    BadImagesError,
    ImageFolder,
    ShardedImages,
    StatelessDataset,
    StatelessSampler,
    UnreadableImageError,
)
from mmconvnextv2.datasets import image_folder as folder_module
from mmconvnextv2.datasets import shards as shards_module
from mmconvnextv2.datasets.shard_index import MANIFEST, ShardError, is_sharded, list_members
from mmconvnextv2.datasets.shard_packing import index_folder, pack_folder

pytestmark = pytest.mark.integration

NUM_IMAGES = 41
LOAD = [{"type": "LoadImage"}]
CROP = [
    {"type": "LoadRandomResizedCrop", "scale": 16, "crop_ratio_range": (0.2, 1.0)},
    {"type": "RandomFlip", "prob": 0.5},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images of all kinds in nested folders, the first pixel of each saying which one it is."""
    root = tmp_path_factory.mktemp("source")
    for number in range(NUM_IMAGES):
        kind = ("png", "jpg", "bmp", "webp")[number % 4]
        pixels = np.random.default_rng(number).integers(0, 256, (24, 30, 3), np.uint8)
        path = root / f"n{number % 5}" / f"{number:02d}.v1.{kind}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def packed(source, tmp_path):
    pack_folder(source, tmp_path / "shards", max_bytes=20_000)
    assert 4 <= len(list((tmp_path / "shards").glob("*.tar"))) < NUM_IMAGES
    return tmp_path / "shards"


@pytest.fixture
def log(monkeypatch):
    """Collect what the dataset logs."""
    lines = []
    for module in (shards_module, folder_module):
        monkeypatch.setattr(module, "print_log", lambda message, *_: lines.append(message))
    return lines


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend to be one rank of several."""

    def pretend(rank, world_size):
        monkeypatch.setattr(mmengine.dataset.sampler, "get_dist_info", lambda: (rank, world_size))

    return pretend


def loader(dataset, num_workers=0, epoch=0, start=0, shuffle=True, batch_size=4):
    """What a training process reads in one epoch: lists of samples."""
    dataset = StatelessDataset(dataset)
    sampler = StatelessSampler(dataset, seed=5, shuffle=shuffle, round_up=False)
    sampler.set_epoch(epoch)
    sampler.start_at(epoch, start)
    context = "fork" if num_workers else None
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=list,
        multiprocessing_context=context,
    )


def read(*args, **options):
    return [sample for batch in loader(*args, **options) for sample in batch]


def names(samples):
    return [sample["img_path"].split(":")[1] for sample in samples]


def flip_byte(shard, number, place=100):
    """Change one byte of one image of a shard; return the member's name."""
    member = list_members(shard)[number]
    with open(shard, "r+b") as file:
        file.seek(member.offset_data + place)
        byte = file.read(1)[0]
        file.seek(member.offset_data + place)
        file.write(bytes([byte ^ 1]))
    return member.name


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("pipeline", [LOAD, CROP], ids=["whole", "crop"])
def test_a_run_on_shards_is_the_run_on_the_folder(source, packed, pipeline, epoch):
    ours = read(ShardedImages(packed, pipeline=pipeline), epoch=epoch)
    theirs = read(ImageFolder(source, pipeline=pipeline), epoch=epoch)
    assert len(ours) == len(theirs) == NUM_IMAGES
    for one, other in zip(ours, theirs, strict=True):
        name = os.path.relpath(other["img_path"], source).replace(".v1.", "%2Ev1.")
        assert one["img_path"].endswith(f".tar:{name}")
        np.testing.assert_array_equal(one["img"], other["img"])
        assert one["sample_idx"] == other["sample_idx"]


@pytest.mark.fault(
    11,
    "shards read by 1 to 5 ranks with 0 to 2 workers each, two epochs",
    "every image once an epoch, the same pixels",
)
@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_share_an_epoch_without_overlap_or_loss(
    packed, as_rank, world_size, num_workers
):
    dataset = ShardedImages(packed, pipeline=CROP)
    orders = []
    for epoch in (0, 1):
        alone = {s["img_path"]: s["img"] for s in read(dataset, epoch=epoch)}
        shares = []
        for rank in range(world_size):
            as_rank(rank, world_size)
            shares.append(read(dataset, num_workers, epoch=epoch))
        as_rank(0, 1)
        counts = Counter(sample["img_path"] for share in shares for sample in share)
        assert len(counts) == NUM_IMAGES and set(counts.values()) == {1}
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        for sample in (sample for share in shares for sample in share):
            np.testing.assert_array_equal(sample["img"], alone[sample["img_path"]])
        orders.append([sample["img_path"] for share in shares for sample in share])
    assert orders[0] != orders[1]


@pytest.mark.fault(11, "reading shards interrupted within an epoch", "goes on at the next image")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_goes_on_where_it_stopped(packed, num_workers, monkeypatch):
    dataset = ShardedImages(packed, pipeline=CROP)
    whole = read(dataset, epoch=2)
    read_from = []
    packed_reader = shards_module.read_packed

    for start in (0, 1, 17, NUM_IMAGES - 1, NUM_IMAGES):
        rest = read(dataset, num_workers, epoch=2, start=start)
        assert names(rest) == names(whole[start:])
        for one, other in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(one["img"], other["img"])

    def count(results):
        read_from.append(results["offset"])
        return packed_reader(results)

    dataset.pipeline.transforms[0] = count
    read(dataset, epoch=2, start=30)
    assert len(read_from) == NUM_IMAGES - 30, "what was had before is not read again"


@pytest.mark.parametrize("split", [None, "train"])
def test_built_from_a_config_and_pickled(source, tmp_path, split, log):
    folder = tmp_path if split is None else tmp_path / split
    pack_folder(source, folder, max_bytes=20_000)
    dataset = DATASETS.build(
        dict(type="ShardedImages", data_root=str(tmp_path), split=split, pipeline=LOAD)
    )
    again = pickle.loads(pickle.dumps(dataset))
    assert len(again) == NUM_IMAGES
    for index in (0, 7, -1):
        np.testing.assert_array_equal(again[index]["img"], dataset[index]["img"])
    with pytest.raises(IndexError):
        again[NUM_IMAGES]
    assert "41 images in" in log[0] and "41 checked, 0 bad" in log[0]
    assert "img_bytes" not in dataset.get_data_info(3)
    assert dataset.get_data_info(3)["sample_idx"] == 3
    assert dataset.metainfo == {}


def test_part_of_the_list(packed):
    whole = names(ShardedImages(packed, pipeline=LOAD))
    assert names(ShardedImages(packed, pipeline=LOAD, indices=3)) == whole[:3]
    assert names(ShardedImages(packed, pipeline=LOAD, indices=[8, 2])) == [whole[8], whole[2]]
    lazy = ShardedImages(packed, lazy_init=True)
    assert lazy._fully_initialized is False
    assert len(lazy) == NUM_IMAGES


def test_shards_may_lie_on_several_disks(packed, tmp_path):
    other = tmp_path / "other disk"
    other.mkdir()
    expected = names(ShardedImages(packed, pipeline=LOAD))
    for shard in sorted(packed.glob("*.tar"))[::2]:
        shard.rename(other / shard.name)
        shard.symlink_to(other / shard.name)
    assert names(ShardedImages(packed, pipeline=LOAD)) == expected


@pytest.mark.fault(
    11, "a byte of an image in a shard flipped", "noticed, named once, replaced by the next image"
)
def test_a_flipped_byte_is_noticed_and_the_image_replaced(packed, log):
    shard = packed / "shard-000001.tar"
    good = ShardedImages(packed, pipeline=LOAD)
    before = [sample["img"] for sample in good]
    position = len(list_members(packed / "shard-000000.tar")) + 2
    # In a BMP any pixel may have any value: nothing but the checksum can tell.
    position += next(i for i in range(8) if names([good[position + i]])[0].endswith("bmp"))
    number = position - len(list_members(packed / "shard-000000.tar"))
    name = flip_byte(shard, number)
    del log[:]
    dataset = ShardedImages(packed, pipeline=LOAD)
    assert "41 checked, 1 bad" in log[0]
    assert f"{shard}:{name}: its bytes are not those that were indexed" in log[1]
    for _ in range(2):
        after = [sample["img"] for sample in dataset]
        np.testing.assert_array_equal(after[position], before[position + 1])
        del after[position]
        for one, other in zip(after, before[:position] + before[position + 1 :], strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(log) == 3, "once at the start, once where it is replaced"
    with pytest.raises(BadImagesError, match=f"allows 0(.|\n)*{name}"):
        ShardedImages(packed, pipeline=LOAD, max_bad_share=0)
    with pytest.raises(UnreadableImageError, match="CRC-32"):
        _ = ShardedImages(packed, pipeline=LOAD, test_mode=True)[position]


@pytest.mark.fault(
    11, "shards that vanish, are cut short or replaced during a run", "an error that names them"
)
@pytest.mark.parametrize("how", ["gone", "cut", "replaced"])
def test_shards_that_change_during_a_run(packed, how):
    dataset = ShardedImages(packed, pipeline=LOAD)
    shard = packed / "shard-000002.tar"
    if how == "gone":
        shard.unlink()
    elif how == "cut":
        os.truncate(shard, 600)
    else:
        shard.write_bytes((packed / "shard-000000.tar").read_bytes())
    with pytest.raises(BadImagesError, match=r"shard-000002\.tar:"):
        read(dataset)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("manifest", f"has no {MANIFEST}. If packing it was interrupted.*pack_shards.py index"),
        ("not json", "cannot be read as the list of shards"),
        ("other json", "cannot be read as the list of shards"),
        ("shard", r"2 of \d+ shards are not what shards.json says(.|\n)*000001.tar: .*No such"),
        ("size", r"shard-000001.tar: it has 1,024 bytes instead of"),
        ("index", r"shard-000001.tar: the index .* cannot be read"),
        ("index cut", r"shard-000001.tar: the index .* cannot be read"),
        ("other index", r"shard-000001.tar: its index has \d+ images instead of"),
        ("no index", r"shard-000001.tar: .* is no index of a shard"),
    ],
)
def test_incomplete_shards_are_refused_at_the_start(packed, fault, message):
    shard, index = packed / "shard-000001.tar", packed / "shard-000001.index.npy"
    if fault == "manifest":
        (packed / MANIFEST).unlink()
        assert not is_sharded(packed)
    elif fault == "not json":
        (packed / MANIFEST).write_text("{")
    elif fault == "other json":
        (packed / MANIFEST).write_text('{"shards": [{"url": "a.tar"}]}')
    elif fault == "shard":
        shard.unlink()
        (packed / "shard-000003.tar").unlink()
    elif fault == "size":
        os.truncate(shard, 1024)
    elif fault == "index":
        index.unlink()
    elif fault == "index cut":
        index.write_bytes(index.read_bytes()[:-20])
    elif fault == "other index":
        np.save(index, np.load(index)[:-1])
    else:
        np.save(index, np.zeros(len(np.load(index))))
    with pytest.raises(ShardError, match=message):
        ShardedImages(packed)


def test_a_missing_folder_and_unsuitable_arguments(packed, tmp_path):
    assert is_sharded(packed) and not is_sharded(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds .*shards/"):
        ShardedImages(tmp_path / "shard")
    with pytest.raises(ValueError, match=r"max_bad_share must be in \[0, 1\]"):
        ShardedImages(packed, max_bad_share=2)
    with pytest.raises(ValueError, match="LoadRaster reads files alone"):
        ShardedImages(packed, pipeline=[dict(type="LoadRaster", channels=3)])


def test_webdataset_reads_what_we_pack(source, packed):
    wds = pytest.importorskip("webdataset", reason="webdataset, the peer, is not installed")
    urls = [str(path) for path in sorted(packed.glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    expected = [path for path in sorted(source.rglob("*.*")) if path.is_file()]
    assert len(samples) == len(expected) == NUM_IMAGES
    for sample, path in zip(samples, expected, strict=True):
        assert sample["__key__"] == f"{path.parent.name}/{path.stem.replace('.', '%2E')}"
        assert sample[path.suffix[1:]] == path.read_bytes()


def test_we_read_what_webdataset_packs(source, tmp_path):
    wds = pytest.importorskip("webdataset", reason="webdataset, the peer, is not installed")
    paths = [path for path in sorted(source.rglob("*.*")) if path.is_file()]
    pattern = str(tmp_path / "laion-%05d.tar")
    with wds.ShardWriter(pattern, maxcount=9, verbose=0) as writer:
        for number, path in enumerate(paths):
            key = f"{path.parent.name}/{path.stem.replace('.', '_')}"
            parts = {"__key__": key, "cls": number, "json": {"n": number}, "seg.png": b"a map"}
            writer.write({**parts, path.suffix[1:]: path.read_bytes()})
    with pytest.raises(ShardError, match="pack_shards.py index"):
        ShardedImages(tmp_path)
    index_folder(tmp_path)
    ours, theirs = ShardedImages(tmp_path, pipeline=LOAD), ImageFolder(source, pipeline=LOAD)
    assert len(ours) == len(theirs) == NUM_IMAGES
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one["img"], other["img"])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(source, tmp_path, form):
    """A long name takes extra blocks in two of them, and is cut where it is only shown."""
    path = next(iter(sorted(source.rglob("*.bmp"))))
    name = f"{'d' * 90}/{'n' * 90}.bmp"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as shard:
        shard.add(path, name)
        shard.add(path, "b.bmp")
    index_folder(tmp_path)
    first, second = ShardedImages(tmp_path, pipeline=LOAD)
    np.testing.assert_array_equal(first["img"], second["img"])
    assert names([second]) == ["b.bmp"]
    assert name.startswith(names([first])[0].removesuffix(".bmp")[:90])


def test_a_whole_run_on_shards_ends_with_the_weights_of_one_on_the_folder(source, packed, tmp_path):
    narrow = {
        "model.backbone.arch": dict(ARCH, _delete_=True),
        "model.neck.in_channels": CHANNELS[-1],
        "model.neck.num_channels": 16,
    }
    weights = []
    for data in (source, packed):
        result = pretrain(
            data,
            tmp_path / f"run {data.name}",
            epochs=2,
            batch_size=8,
            image_size=64,
            num_workers=0,
            cfg_options=narrow,
        )
        weights.append(torch.load(result.checkpoint, weights_only=True)["state_dict"])
    (config,) = (tmp_path / "run shards").glob("*.py")
    assert "ShardedImages" in config.read_text()
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_incomplete_shards_are_refused_before_a_run_begins(packed, tmp_path):
    (packed / "shard-000001.tar").unlink()
    with pytest.raises(ShardError, match="1 of"):
        pretrain(packed, tmp_path / "run", epochs=1, num_workers=0)
    assert ShardError in USER_ERRORS
