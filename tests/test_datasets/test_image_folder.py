"""`ImageFolder`: finding images, refusing bad folders, surviving unreadable files."""

import io
import os
import pickle

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from mmconvnextv2.datasets import BadImagesError, ImageFolder, UnreadableImageError
from mmconvnextv2.datasets import image_folder as module
from mmconvnextv2.datasets.image_folder import allowed_bad

pytestmark = pytest.mark.unit

LOAD = [{"type": "LoadImage"}]


@pytest.fixture
def log(monkeypatch):
    """Collect what the dataset logs."""
    lines = []
    monkeypatch.setattr(module, "print_log", lambda message, *_: lines.append(message))
    return lines


def write_image(path, value=0, size=(12, 8), mode="RGB"):
    """Write an image whose first pixel tells which one it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)
    return path


def write_images(folder, count):
    for i in range(count):
        write_image(folder / f"{i:03d}.png", value=i)
    return folder


def truncate(path):
    """Replace a file by half a JPEG: a good header, a broken body."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def names(dataset, root):
    return [
        os.path.relpath(dataset.get_data_info(i)["img_path"], root) for i in range(len(dataset))
    ]


def values(dataset):
    return [int(dataset[i]["img"][0, 0, 0]) for i in range(len(dataset))]


def test_nested_mixed_folder_in_sorted_order(tmp_path):
    write_image(tmp_path / "b.JPG")
    write_image(tmp_path / "a.png", mode="L")
    write_image(tmp_path / "z" / "deep" / "er" / "1.webp")
    write_image(tmp_path / "z" / "2.tiff", mode="RGBA", value=7, size=(40, 3))
    write_image(tmp_path / "m" / "x.gif", mode="P")
    write_image(tmp_path / "with space" / "ü.bmp")
    write_image(tmp_path / ".hidden.png")
    write_image(tmp_path / ".cache" / "thumb.png")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = ImageFolder(tmp_path, pipeline=LOAD)
    assert names(dataset, tmp_path) == [
        "a.png", "b.JPG", "m/x.gif", "with space/ü.bmp", "z/2.tiff", "z/deep/er/1.webp",
    ]  # fmt: skip
    assert [dataset[i]["img"].shape for i in range(6)] == [(8, 12, 3)] * 4 + [
        (3, 40, 3),
        (8, 12, 3),
    ]


def test_built_from_a_config_and_pickled(tmp_path):
    write_images(tmp_path, 3)
    dataset = DATASETS.build({"type": "ImageFolder", "data_root": str(tmp_path), "pipeline": LOAD})
    assert values(pickle.loads(pickle.dumps(dataset))) == [0, 1, 2]
    assert len(ImageFolder(tmp_path, indices=2)) == 2
    lazy = ImageFolder(tmp_path, lazy_init=True)
    assert lazy._fully_initialized is False
    assert len(lazy) == 3


def test_links_are_followed_and_cycles_end(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    write_image(root / "a" / "1.png")
    write_image(elsewhere / "2.png")
    (root / "a" / "up").symlink_to(root)
    (root / "linked").symlink_to(elsewhere)
    (root / "self.png").symlink_to(root / "self.png")
    (elsewhere / "back").symlink_to(root / "a")
    dataset = ImageFolder(root)
    assert names(dataset, root) == ["a/1.png", "linked/2.png"]


@pytest.mark.parametrize(
    "layout",
    ["train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train", "ILSVRC2012_img_train"],
)
def test_split_layouts(tmp_path, layout):
    write_image(tmp_path / layout / "n01440764" / "1.JPEG")
    write_image(tmp_path / layout.replace("train", "val") / "2.JPEG")
    dataset = ImageFolder(tmp_path, split="train")
    assert names(dataset, tmp_path / layout) == ["n01440764/1.JPEG"]
    assert len(ImageFolder(tmp_path)) == 2


def test_missing_split_says_what_is_there(tmp_path):
    write_image(tmp_path / "validation" / "1.png")
    (tmp_path / "README.md").touch()
    with pytest.raises(FileNotFoundError, match="no split 'train'") as caught:
        ImageFolder(tmp_path, split="train")
    message = str(caught.value)
    assert "ILSVRC/Data/CLS-LOC/train" in message
    assert "README.md, validation/" in message
    assert "split=None" in message


def test_wrong_path_names_the_nearest_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image folder at .*fotos/2020.*holds photos/"):
        ImageFolder(tmp_path / "fotos" / "2020")


def test_file_instead_of_folder(tmp_path):
    path = write_image(tmp_path / "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png is a file; a folder"):
        ImageFolder(path)


def test_folder_without_images_counts_what_it_holds(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").touch()
    for name in ("a.csv", "sub.CSV", "Makefile"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="no image in") as caught:
        ImageFolder(tmp_path)
    assert "found 13 files (10 .txt, 2 .csv, 1 without suffix)" in str(caught.value)
    assert "looked for .apng .bmp" in str(caught.value)


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="found no files"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_share_outside_the_unit_interval(tmp_path, share):
    with pytest.raises(ValueError, match=r"max_bad_share must be in \[0, 1\]"):
        ImageFolder(tmp_path, max_bad_share=share)


@pytest.mark.parametrize(
    ("share", "count", "allowed"),
    [(0, 30, 0), (0.01, 1, 1), (0.01, 30, 1), (0.01, 199, 1), (0.01, 200, 2), (0.01, 2000, 20),
     (0.29, 100, 29), (1, 7, 7)],
)  # fmt: skip
def test_allowed_bad(share, count, allowed):
    assert allowed_bad(share, count) == allowed


def test_one_bad_header_of_thirty_is_dropped_and_named(tmp_path, log):
    write_images(tmp_path, 30)
    (tmp_path / "007.png").write_text("not an image")
    (tmp_path / "list.txt").touch()
    dataset = ImageFolder(tmp_path, pipeline=LOAD)
    assert values(dataset) == [i for i in range(30) if i != 7]
    summary, named = log
    assert "29 images (29 .png); 30 headers checked, 1 bad; 1 other files" in summary
    assert "007.png: UnidentifiedImageError" in named


def test_zero_share_allows_nothing(tmp_path):
    write_images(tmp_path, 30)
    (tmp_path / "007.png").write_bytes(b"")
    with pytest.raises(BadImagesError, match=r"allows 0(.|\n)*007\.png: the file is empty"):
        ImageFolder(tmp_path, max_bad_share=0)


def test_too_many_bad_headers_refuse_with_the_list(tmp_path):
    write_images(tmp_path, 60)
    for i in range(25):
        (tmp_path / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(BadImagesError) as caught:
        ImageFolder(tmp_path)
    message = str(caught.value)
    assert "unreadable images: 25 of 60 checked" in message
    assert message.count("0 bytes") == 20
    assert "and 5 more" in message


def test_all_bad(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(BadImagesError, match="no readable image"):
        ImageFolder(tmp_path)


def test_dangling_link_is_a_bad_image(tmp_path, log):
    write_images(tmp_path, 5)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert len(ImageFolder(tmp_path)) == 5
    assert "gone.jpg: FileNotFoundError" in log[1]


def test_unlistable_sub_folder_is_named(tmp_path, log, monkeypatch):
    """Permissions do not bind root, so the refusal is simulated."""
    write_images(tmp_path, 5)
    write_image(tmp_path / "lost+found" / "x.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(ImageFolder(tmp_path)) == 5
    assert "lost+found: the folder cannot be listed: Permission denied" in log[1]
    with pytest.raises(PermissionError):
        ImageFolder(tmp_path / "lost+found")


def test_large_folder_checks_an_even_sample(tmp_path, log, monkeypatch):
    from mmconvnextv2.datasets import image_scan

    monkeypatch.setattr(image_scan, "CHECK_ALL_UP_TO", 20)
    monkeypatch.setattr(image_scan, "CHECK_SAMPLE", 10)
    write_images(tmp_path, 40)
    (tmp_path / "008.png").write_bytes(b"")
    (tmp_path / "009.png").write_bytes(b"")
    dataset = ImageFolder(tmp_path)
    # Every fourth header is looked at: number 8 is found, number 9 is left for training.
    assert "39 images" in log[0]
    assert "10 headers checked, 1 bad" in log[0]
    assert "009.png" in names(dataset, tmp_path)


def test_sample_of_a_large_folder_is_even():
    from mmconvnextv2.datasets.image_scan import choose_headers

    numbers = [int(name) for name in choose_headers([str(i) for i in range(1_281_167)])]
    assert len(numbers) == 2000
    assert set(np.diff(numbers)) == {640, 641}
    assert len(choose_headers(["x"] * 10_000)) == 10_000


def test_broken_body_is_replaced_by_the_next_and_logged_once(tmp_path, log):
    write_images(tmp_path, 250)
    truncate(tmp_path / "004.png")
    dataset = ImageFolder(tmp_path, pipeline=LOAD)
    (tmp_path / "249.png").unlink()
    expected = list(range(250))
    expected[4], expected[249] = 5, 0
    assert len(dataset) == 250
    assert values(dataset) == expected
    assert values(dataset) == expected
    warnings = log[1:]
    assert len(warnings) == 2
    assert "004.png" in warnings[0]
    assert "truncated" in warnings[0]
    assert "249.png: FileNotFoundError" in warnings[1]


def test_a_crop_of_a_broken_body_is_replaced_too(tmp_path, log):
    write_images(tmp_path, 30)
    truncate(tmp_path / "004.png")
    crop = {"type": "LoadRandomResizedCrop", "scale": 4}
    assert values(ImageFolder(tmp_path, pipeline=[crop]))[3:7] == [3, 5, 5, 6]
    assert "004.png" in log[1]


def test_replacement_does_not_depend_on_what_was_read_before(tmp_path):
    write_images(tmp_path, 300)
    truncate(tmp_path / "004.png")
    truncate(tmp_path / "005.png")
    forward = ImageFolder(tmp_path, pipeline=LOAD)
    backward = ImageFolder(tmp_path, pipeline=LOAD)
    first = [int(forward[i]["img"][0, 0, 0]) for i in range(8)]
    second = [int(backward[i]["img"][0, 0, 0]) for i in reversed(range(8))]
    assert first == second[::-1] == [0, 1, 2, 3, 6, 6, 6, 7]


def test_negative_positions_and_the_end_of_the_list(tmp_path):
    write_images(tmp_path, 3)
    dataset = ImageFolder(tmp_path, pipeline=LOAD)
    assert int(dataset[-1]["img"][0, 0, 0]) == 2
    with pytest.raises(IndexError):
        dataset[3]


def test_bad_files_from_the_start_count_during_training(tmp_path):
    write_images(tmp_path, 30)
    (tmp_path / "000.png").write_bytes(b"")
    truncate(tmp_path / "010.png")
    dataset = ImageFolder(tmp_path, pipeline=LOAD)
    with pytest.raises(BadImagesError, match=r"unreadable images: 2 of 30 in the folder") as caught:
        values(dataset)
    assert "000.png" in str(caught.value)
    assert "010.png" in str(caught.value)


def test_one_bad_file_met_again_and_again_counts_once(tmp_path):
    write_images(tmp_path, 30)
    truncate(tmp_path / "010.png")
    dataset = ImageFolder(tmp_path, pipeline=LOAD)
    for _ in range(3):
        assert values(dataset)[10] == 11


def test_everything_vanishes(tmp_path):
    write_images(tmp_path, 5)
    dataset = ImageFolder(tmp_path, pipeline=LOAD, max_bad_share=1.0)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(BadImagesError, match="no readable image"):
        dataset[0]


def test_test_mode_replaces_nothing(tmp_path):
    write_images(tmp_path, 3)
    truncate(tmp_path / "001.png")
    dataset = ImageFolder(tmp_path, pipeline=LOAD, test_mode=True)
    with pytest.raises(UnreadableImageError, match=r"001\.png"):
        dataset[1]


def test_other_errors_of_the_pipeline_are_not_swallowed(tmp_path):
    write_images(tmp_path, 3)
    dataset = ImageFolder(tmp_path, pipeline=[*LOAD, lambda results: results["no such key"]])
    with pytest.raises(KeyError):
        dataset[0]


@pytest.mark.integration
def test_error_reaches_the_training_process_with_its_list(tmp_path):
    write_images(tmp_path, 8)
    dataset = ImageFolder(tmp_path, pipeline=[*LOAD, lambda results: results["img"]])
    truncate(tmp_path / "002.png")
    truncate(tmp_path / "003.png")
    with pytest.raises(BadImagesError, match=r"002\.png(.|\n)*003\.png"):
        list(DataLoader(dataset, batch_size=4, num_workers=1))


def test_nothing_in_the_folder_changes(tmp_path):
    write_images(tmp_path, 4)
    truncate(tmp_path / "001.png")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    values(ImageFolder(tmp_path, pipeline=LOAD))
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert before == after


@pytest.mark.parametrize("num_shards", [1, 4, 16])
def test_a_process_judges_by_its_own_part(tmp_path, num_shards):
    """With 10 % broken bodies and 1 % allowed, the first of many loader processes stops."""
    write_images(tmp_path, 400)
    for i in range(3, 400, 10):
        truncate(tmp_path / f"{i:03d}.png")
    shards = [ImageFolder(tmp_path, pipeline=LOAD, max_bad_share=0.01) for _ in range(num_shards)]
    order = np.concatenate([np.random.default_rng(epoch).permutation(400) for epoch in range(4)])
    with pytest.raises(BadImagesError, match="max_bad_share=0.01 allows"):
        for position, index in enumerate(order):
            shards[position % num_shards][int(index)]


def test_a_share_within_the_limit_passes(tmp_path):
    write_images(tmp_path, 100)
    for i in (7, 70):
        truncate(tmp_path / f"{i:03d}.png")
    folder = ImageFolder(tmp_path, pipeline=LOAD, max_bad_share=0.02)
    for epoch in range(3):
        for index in np.random.default_rng(epoch).permutation(100):
            folder[int(index)]
