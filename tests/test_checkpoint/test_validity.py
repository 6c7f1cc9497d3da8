"""Which checkpoint a run goes on from: the newest whose content is whole."""

from __future__ import annotations

import os
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmconvnextv2.checkpoint.validity import (
    CheckpointError,
    Progress,
    check_checkpoint,
    newest_valid_checkpoint,
    read_progress,
)

pytestmark = pytest.mark.unit


def content(epoch: int = 2, iteration: int = 20) -> dict[str, Any]:
    """What mmengine saves, small."""
    weight = torch.arange(2000.0) + iteration
    return dict(
        meta=dict(epoch=epoch, iter=iteration, seed=0),
        state_dict=OrderedDict(weight=weight, bias=torch.ones(3)),
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        optimizer=dict(state={0: dict(exp_avg=weight / 2)}, param_groups=[dict(lr=0.1)]),
        param_schedulers=[],
    )


def save(path: Path, epoch: int = 2, iteration: int = 20) -> Path:
    torch.save(content(epoch, iteration), path)
    return path


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_a_whole_file_tells_how_far_the_run_was(tmp_path: Path) -> None:
    assert check_checkpoint(save(tmp_path / "a.pth", 7, 91)) == Progress(7, 91)
    assert read_progress(tmp_path / "a.pth") == (7, 91)


@pytest.mark.fault(3, "a bit of the newest checkpoint flipped", "rejected, or no tensor changed")
def test_a_flipped_bit_is_found(tmp_path: Path, soak_count: Callable[[int, int], int]) -> None:
    path = save(tmp_path / "a.pth")
    whole, expected = path.read_bytes(), content()
    draw = random.Random(0)
    found = 0
    for _ in range(soak_count(100, 5000)):
        flip(path, draw.randrange(len(whole)), draw.randrange(8))
        try:
            check_checkpoint(path)
        except CheckpointError:
            found += 1
        else:  # padding between the records, or a date
            there = torch.load(path, weights_only=True)
            assert all(
                torch.equal(there["state_dict"][k], v) for k, v in expected["state_dict"].items()
            )
            assert torch.equal(
                there["optimizer"]["state"][0]["exp_avg"],
                expected["optimizer"]["state"][0]["exp_avg"],
            )
            assert there["meta"] == expected["meta"]
        path.write_bytes(whole)
    assert found > 50


def test_every_flip_inside_a_tensor_is_found(tmp_path: Path) -> None:
    """A safe load alone takes these files without a word."""
    path = save(tmp_path / "a.pth")
    numbers = content()["state_dict"]["weight"].numpy().tobytes()
    start = path.read_bytes().index(numbers)
    for offset in (0, 1, len(numbers) // 2, len(numbers) - 1):
        flip(path, start + offset)
        torch.load(path, weights_only=True)
        with pytest.raises(CheckpointError, match=r"damaged: \S+/data/\d+ does not match its"):
            check_checkpoint(path)
        flip(path, start + offset)
    check_checkpoint(path)


@pytest.mark.fault(3, "the newest checkpoint cut short", "rejected")
def test_a_truncated_file_is_damaged(tmp_path: Path, soak_count: Callable[[int, int], int]) -> None:
    path = save(tmp_path / "a.pth")
    whole, draw = path.read_bytes(), random.Random(0)
    times = soak_count(30, 1000)
    for size in [0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(times - 3))]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"is damaged.*bytes"):
            check_checkpoint(path)


class Poison:
    """Writes a file when it is unpickled the unsafe way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.fault(8, "code hidden in a checkpoint's pickle", "rejected, not executed")
def test_a_poisoned_pickle_is_named_and_not_executed(tmp_path: Path) -> None:
    torch.save(dict(content(), optimizer=Poison(tmp_path / "mark")), tmp_path / "epoch_3.pth")
    with pytest.raises(CheckpointError, match=r"needs \S*mkdir, which could run code"):
        check_checkpoint(tmp_path / "epoch_3.pth")
    assert not (tmp_path / "mark").exists()


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in content().items() if k != key}


@pytest.mark.parametrize(
    ("made_of", "reason"),
    [
        (content()["state_dict"], "lacks meta, state_dict, message_hub, optimizer"),
        (dict(state_dict=content()["state_dict"], meta={}), "lacks message_hub, optimizer"),
        (without("optimizer"), r"lacks optimizer \(best_\* and published"),
        (without("message_hub"), "lacks message_hub"),
        ([1, 2], "lacks meta"),
        (dict(content(), state_dict={}), "its state_dict is no set of tensors"),
        (dict(content(), state_dict=dict(a="text")), "its state_dict is no set of tensors"),
        (dict(content(), meta=dict(epoch=1)), "its meta names epoch 1 and iteration None"),
        (dict(content(), meta=dict(epoch=-1, iter=5)), "its meta names epoch -1"),
    ],
)
def test_a_file_that_no_run_can_go_on_from(tmp_path: Path, made_of: Any, reason: str) -> None:
    torch.save(made_of, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=reason):
        check_checkpoint(tmp_path / "a.pth")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="no complete archive"):
        check_checkpoint(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of a run"):
        check_checkpoint(tmp_path / "b.pth")
    with pytest.raises(FileNotFoundError, match=r"none.pth does not exist"):
        check_checkpoint(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        check_checkpoint(tmp_path)


# Among several.


def search(folder: Path) -> tuple[str | None, list[str]]:
    lines: list[str] = []
    found = newest_valid_checkpoint(folder, lines.append)
    return found and found.name, lines


def test_the_most_iterations_win(tmp_path: Path) -> None:
    """Neither the last digit, nor the order of names, nor the time decides."""
    for epoch in (9, 10, 2):
        save(tmp_path / f"epoch_{epoch}.pth", epoch, 10 * epoch)
    assert search(tmp_path) == ("epoch_10.pth", [])
    save(tmp_path / "iter_105.pth", 10, 105)
    assert search(tmp_path) == ("iter_105.pth", [])
    save(tmp_path / "epoch_11.pth", 11, 110)
    assert search(tmp_path) == ("epoch_11.pth", [])
    os.utime(tmp_path / "epoch_2.pth")
    assert search(tmp_path) == ("epoch_11.pth", [])


def test_at_equal_iterations_the_later_file_wins(tmp_path: Path) -> None:
    for name, age in (("epoch_2.pth", 10), ("iter_20.pth", 5)):
        os.utime(save(tmp_path / name), (1e9 - age, 1e9 - age))
    assert search(tmp_path)[0] == "iter_20.pth"
    os.utime(tmp_path / "epoch_2.pth", (1e9, 1e9))
    assert search(tmp_path)[0] == "epoch_2.pth"


@pytest.mark.parametrize("pointer", [None, "", "epoch_3.pth", "/nowhere/epoch_9.pth", "\0"])
@pytest.mark.fault(3, "last_checkpoint missing, empty or wrong", "the newest valid file is taken")
def test_the_pointer_does_not_matter(tmp_path: Path, pointer: str | None) -> None:
    for epoch in (1, 2):
        save(tmp_path / f"epoch_{epoch}.pth", epoch, 10 * epoch)
    if pointer is not None:
        (tmp_path / "last_checkpoint").write_text(pointer)
    assert search(tmp_path) == ("epoch_2.pth", [])


def test_each_rejected_file_is_named_with_the_reason(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 4):
        save(tmp_path / f"epoch_{epoch}.pth", epoch, 10 * epoch)
    whole = (tmp_path / "epoch_4.pth").read_bytes()
    (tmp_path / "epoch_4.pth").write_bytes(whole[: len(whole) // 2])
    torch.save(without("optimizer"), tmp_path / "epoch_3.pth")
    found, lines = search(tmp_path)
    assert found == "epoch_2.pth"
    first, second = lines
    assert first.startswith(f"not resumed from: {tmp_path / 'epoch_4.pth'} is damaged")
    assert "epoch_3.pth" in second and "lacks optimizer" in second


def test_files_that_are_no_run_s_are_left_aside(tmp_path: Path) -> None:
    """Weights to begin with, the best so far, unfinished and published files."""
    for name in (
        "initial_weights.pth",
        "best_top1_epoch_3.pth",
        ".epoch_4.pth.0123456789abcdef0123456789abcdef.part",
        "epoch_3-0a1b2c3d.pth",
        "epoch_x.pth",
        "my_epoch_3.pth",
    ):
        (tmp_path / name).write_bytes(b"whatever")
    assert search(tmp_path) == (None, [])
    assert search(tmp_path / "nowhere") == (None, [])


def test_files_and_none_valid_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "epoch_1.pth").touch()
    torch.save(content()["state_dict"], tmp_path / "iter_7.pth")
    with pytest.raises(CheckpointError) as caught:
        newest_valid_checkpoint(tmp_path, lambda _: None)
    message = str(caught.value)
    assert "no checkpoint that it could go on from" in message and "--overwrite" in message
    assert "epoch_1.pth is damaged" in message and "iter_7.pth is no checkpoint of a run" in message


def test_a_pointer_without_files_is_an_error(tmp_path: Path) -> None:
    """They were deleted, or lie elsewhere: no reason to start from the beginning silently."""
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_3.pth")
    with pytest.raises(CheckpointError, match="last_checkpoint names one"):
        newest_valid_checkpoint(tmp_path)
