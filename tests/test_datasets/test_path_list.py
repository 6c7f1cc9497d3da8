"""`PathList` is a list of strings in less memory."""

import copy
import pickle
import random
import tracemalloc

import pytest
from PIL import Image

from mmconvnextv2.datasets import ImageFolder, SplitImageFolder
from mmconvnextv2.datasets.path_list import PathList

pytestmark = pytest.mark.unit

PATHS = [
    "/data/train/n01/a.JPEG",
    "/data/train/n01/b.JPEG",
    "/data/train/n02/a.JPEG",
    "/top.png",
    "loose.png",
    "rel/ü.png",
    "rel/\udcff.png",
    "/data/train/n01/c.JPEG",
    "odd//double.png",
]


def test_it_is_the_list_of_strings():
    paths = PathList(PATHS)
    assert len(paths) == len(PATHS)
    assert list(paths) == PATHS
    assert [paths[i] for i in range(len(PATHS))] == PATHS
    assert [paths[i] for i in range(-len(PATHS), 0)] == PATHS
    assert list(paths[2:7:2]) == PATHS[2:7:2]
    assert list(paths[-2:]) == PATHS[-2:]
    for index in (len(PATHS), -len(PATHS) - 1):
        with pytest.raises(IndexError):
            paths[index]
    assert list(PathList()) == []
    assert "loose.png" in paths
    assert paths.index("/top.png") == 3


def test_items_may_be_dropped_and_added():
    paths = PathList(PATHS)
    dropped = {PATHS[0], PATHS[4], "not there"}
    kept = paths.without(dropped)
    assert list(kept) == [path for path in PATHS if path not in dropped]
    kept.append("/data/x.png")
    assert kept[-1] == "/data/x.png"
    assert list(paths) == PATHS


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(duplicate):
    assert list(duplicate(PathList(PATHS))) == PATHS


def test_memory_is_that_of_the_names():
    def names():
        for folder in range(200):
            for image in range(500):
                yield f"/data/imagenet22k/n{folder:08d}/n{folder:08d}_{image:05d}.JPEG"

    def used(build):
        tracemalloc.start()
        kept = build()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(kept) == 100_000
        return size / len(kept)

    # 20 bytes of name and 8 of its end, with what buffers keep in reserve.
    assert used(lambda: PathList(names())) < 36
    assert used(lambda: list(names())) > 90


def test_random_access_equals_iteration():
    paths = [f"d{random.Random(i).randrange(40)}/{i}.png" for i in range(2000)]
    packed = PathList(paths)
    order = random.Random(0).sample(range(2000), 300)
    assert [packed[i] for i in order] == [paths[i] for i in order]


@pytest.mark.parametrize("part", [None, "train"])
def test_a_data_set_of_a_folder_holds_no_object_for_each_name(tmp_path, part):
    for number in range(40):
        path = tmp_path / f"class_{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    pipeline = [dict(type="LoadImage")]
    if part is None:
        dataset = ImageFolder(tmp_path, pipeline=pipeline)
    else:
        dataset = SplitImageFolder(
            tmp_path, part, held_out_share=0.2, label_by_folder=True, pipeline=pipeline
        )
    assert isinstance(dataset.data_list, PathList)
    order = random.Random(0).sample(range(len(dataset)), len(dataset))
    for sample in (dataset[i] for i in order):
        folder, name = sample["img_path"].split("/")[-2:]
        assert sample["img"][0, 0, 2] == int(name[:3])
        assert part is None or sample["gt_label"] == int(folder[-1])
    assert [dataset.get_data_info(-1)[key] for key in ("img_path", "sample_idx")] == [
        dataset.data_list[-1],
        len(dataset) - 1,
    ]
    with pytest.raises(IndexError):
        dataset.get_data_info(len(dataset))
