"""What a checkpoint may hold, and the one clear error for everything else."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmconvnextv2.checkpoint import read_checkpoint, write_checkpoint
from mmconvnextv2.files import replace_when_complete

pytestmark = pytest.mark.unit

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


class Call:
    """An object that unpickles as the result of a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


class Foreign:
    """A class that the reader does not know."""


def assert_equal(read: dict, expected: dict) -> None:
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[key], value) for key, value in expected.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_options_of_the_official_scripts_are_read(tmp_path, zipped):
    options = argparse.Namespace(model="convnextv2_atto", lr=1e-3, betas=[0.9, 0.999], resume=None)
    content = {"model": TENSORS, "epoch": 3, "args": options, "optimizer": {"state": {}}}
    file = tmp_path / "official.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    before = torch.serialization.get_safe_globals()
    assert_equal(read_checkpoint(file), TENSORS)
    assert set(torch.serialization.get_safe_globals()) == set(before)
    assert argparse.Namespace not in before


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "make,name",
    [
        (lambda victim: Call(os.mkdir, str(victim)), r"\w+\.mkdir"),
        (lambda victim: Call(eval, f"open({str(victim)!r}, 'w')"), "eval"),
        (lambda victim: Foreign(), r"\S*test_reading\.Foreign"),
        (lambda victim: argparse.Namespace(device=Foreign()), r"\S*test_reading\.Foreign"),
        (lambda victim: victim, r"pathlib\.\S*Path"),
    ],
    ids=["mkdir", "eval", "class", "in-options", "path"],
)
def test_what_needs_more_is_refused_by_name_and_not_run(tmp_path, make, name, zipped):
    victim, file = tmp_path / "victim", tmp_path / "bad.pth"
    content = {"model": TENSORS, "extra": make(victim)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    before = torch.serialization.get_safe_globals()
    with pytest.raises(ValueError, match=rf"bad\.pth cannot be read .*: it needs {name}, which"):
        read_checkpoint(file)
    assert not victim.exists()
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_an_environment_that_asks_for_unsafe_loads_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Call(os.mkdir, str(tmp_path / "victim")), tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="it needs"):
        read_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "victim").exists()


def damaged_files(folder: Path) -> dict[str, str]:
    """Files that are no checkpoint, each with what its error has to say."""
    torch.save(TENSORS, folder / "whole.pth")
    torch.save(TENSORS, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    write_checkpoint(folder / "whole.safetensors", TENSORS)
    for name in ("whole.pth", "legacy.pth", "whole.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(whole[:-20])
        (folder / f"half-{name}").write_bytes(whole[: len(whole) // 2])
    (folder / "page.pth").write_text("<html>404 not found</html>")
    (folder / "page.safetensors").write_text("<html>404 not found</html>")
    (folder / "pickle.safetensors").write_bytes((folder / "whole.pth").read_bytes())
    (folder / "empty.pth").touch()
    (folder / "empty.safetensors").touch()
    names = [path.name for path in folder.iterdir() if path.name.startswith(("cut-", "half-"))]
    errors = dict.fromkeys([*names, "page.pth", "page.safetensors", "pickle.safetensors"], "")
    return errors | {"empty.pth": "it has 0 bytes", "empty.safetensors": "it has 0 bytes"}


def test_damaged_files_are_refused(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    for name, words in damaged_files(tmp_path).items():
        with pytest.raises(ValueError, match=rf"{re.escape(name)} cannot be read .*{words}") as e:
            read_checkpoint(tmp_path / name)
        assert len(str(e.value).splitlines()) == 1
        assert "weights_only" not in str(e.value), "torch recommends the unsafe load"


def test_what_is_no_local_file_is_refused(tmp_path):
    for name in ("whole.pth", "whole.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(FileNotFoundError, match="is a folder"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="not a local file: get it with .*fetch_checkpoint"):
        read_checkpoint("https://example.org/a.pth")


def test_safetensors_are_read_and_written(tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    file = tmp_path / "a.safetensors"
    transposed = {**TENSORS, "a": TENSORS["a"].T}
    write_checkpoint(file, transposed, meta=dict(depths=[1, 2]))
    assert_equal(read_checkpoint(file), transposed)
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "depths": "[1, 2]"}


@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_files_of_torch_save_have_the_publishers_entry(tmp_path, key):
    write_checkpoint(tmp_path / "a.pth", TENSORS, key, dict(arch="atto"))
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content.keys() == ({"meta", key} if key else TENSORS.keys())
    assert key is None or content["meta"] == {"arch": "atto"}
    assert_equal(read_checkpoint(tmp_path / "a.pth"), TENSORS)
    with pytest.raises(FileNotFoundError, match="folder .*none does not exist"):
        write_checkpoint(tmp_path / "none" / "a.pth", TENSORS)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), replace_when_complete(file) as part:
        part.write_text("half of the n")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and file.read_text() == "old"
    with replace_when_complete(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and file.read_text() == "new"
