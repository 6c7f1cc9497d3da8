"""The command `convert`: what it writes, what it says, and that an error leaves nothing behind."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import load_checkpoint
from torch import nn

from mmconvnextv2.checkpoint import convert_state_dict, read_checkpoint, write_checkpoint
from mmconvnextv2.cli.main import main
from mmconvnextv2.nn import FCMAE, ConvNeXtV2

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "model_converters" / "convert.py"


@pytest.fixture
def files(tmp_path, tiny_arch, randomize_grn) -> Path:
    """A folder with a pre-training checkpoint of ours, run.pth, and a place for results."""
    model = randomize_grn(FCMAE.build(tiny_arch, decoder_channels=16))
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 1}}, tmp_path / "run.pth")
    (tmp_path / "out").mkdir()
    return tmp_path


def test_timm_and_back(tmp_path, randomize_grn, capsys):
    ours = randomize_grn(ConvNeXtV2("atto"))
    head = randomize_grn(nn.Linear(320, 1000))
    state = {f"backbone.{key}": value for key, value in ours.state_dict().items()}
    state |= {f"head.fc.{key}": value for key, value in head.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "ours.pth")

    def convert(source: str, target: str, *options: str) -> str:
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), *options]) == 0
        return capsys.readouterr().out

    text = convert("ours.pth", "timm.pth", "--to", "timm")
    assert "mmconvnextv2 -> timm" in text and "of atto (depths (2, 2, 6, 2)" in text
    assert "left out" not in text and "CC-BY-NC" in text
    model = timm.create_model("convnextv2_atto")
    load_checkpoint(model, str(tmp_path / "timm.pth"), strict=True)
    x_NCHW = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = head(ours.eval()(x_NCHW)[-1])
        torch.testing.assert_close(model.eval()(x_NCHW), expected, rtol=1e-5, atol=1e-5)

    text = convert("timm.pth", "back.safetensors", "--from", "timm", "--to", "mmconvnextv2")
    assert "timm -> mmconvnextv2" in text
    back = read_checkpoint(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


@pytest.mark.parametrize("target,entry", [("official", "model"), ("mmpretrain", "state_dict")])
def test_a_decoder_without_a_place_is_listed(target, entry, files, capsys):
    out = files / "out" / "a.pth"
    assert main(["convert", str(files / "run.pth"), str(out), "--to", target]) == 0
    text = capsys.readouterr().out
    decoder = [key for key in read_checkpoint(files / "run.pth") if key.startswith("neck.")]
    assert f"{len(decoder)} left out, {target} has no place for them" in text
    assert all(f"\n  {key}\n" in text for key in decoder)
    content = torch.load(out, weights_only=True)
    assert content.keys() == {"meta", entry}
    assert content["meta"]["converted_from"] == "mmconvnextv2"
    assert content["meta"]["channels"] == [8, 16, 24, 32]
    assert not [key for key in content[entry] if key.startswith("neck.")]


def test_the_official_pretraining_file(files, capsys, monkeypatch):
    state = read_checkpoint(files / "run.pth")
    sparse = convert_state_dict(state, target="official-sparse").state_dict
    options = argparse.Namespace(model="convnextv2_atto", blr=1.5e-4)
    torch.save({"model": sparse, "args": options, "epoch": 799}, files / "checkpoint-799.pth")
    out = files / "out" / "fcmae.pth"
    source = (files / "checkpoint-799.pth").as_uri()
    monkeypatch.setenv("TORCH_HOME", str(files / "hub"))
    assert main(["convert", source, str(out), "--to", "mmconvnextv2"]) == 0
    streams = capsys.readouterr()
    assert "official-sparse -> mmconvnextv2" in streams.out
    assert "no sha256 is known" in streams.err
    back = read_checkpoint(out)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


class Poison:
    """An object whose unpickling would make a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.victim),))


def spoil(kind: str, folder: Path) -> tuple[list[str], str]:
    """Make an input that has to be refused; give the arguments, and words of the error."""
    state = read_checkpoint(folder / "run.pth")
    whole, bad = (folder / "run.pth").read_bytes(), folder / "bad.pth"
    if kind == "poisoned":
        torch.save({"state_dict": state, "x": Poison(folder / "victim")}, bad)
        return [str(bad)], "mkdir"
    if kind == "truncated":
        bad.write_bytes(whole[: len(whole) // 2])
        return [str(bad)], "cannot be read"
    if kind == "empty":
        bad.touch()
        return [str(bad)], "0 bytes"
    if kind == "folder":
        return [str(folder)], "is a folder"
    if kind == "absent":
        return [str(bad)], "does not exist"
    if kind == "wrong-hash":
        return [str(folder / "run.pth"), "--sha256", "0123456789abcdef"], "is expected"
    if kind == "wrong-name":
        bad = bad.with_name("run-01234567.pth")
        bad.write_bytes(whole)
        return [str(bad)], "01234567 is expected"
    if kind == "wrong-source":
        return [str(folder / "run.pth"), "--from", "timm"], "this is no timm state_dict"
    if kind == "extra":
        state["backbone.stages.0.0.surprise"] = torch.zeros(1)
        words = "1 unexpected: backbone.stages.0.0.surprise"
    elif kind == "missing":
        del state["backbone.stages.0.0.grn.beta"]
        words = "1 missing: backbone.stages.0.0.grn.beta"
    elif kind == "misshaped":
        state["backbone.stages.0.0.grn.beta"] = torch.zeros(33)
        words = "1 misshaped: backbone.stages.0.0.grn.beta: (33,) in the file, (32,) in the model"
    else:
        state = {"layer1.0.conv1.weight": torch.zeros(1)}
        words = "no ConvNeXt V2 of a known publisher"
    torch.save(state, bad)
    return [str(bad)], words


@pytest.mark.parametrize(
    "kind",
    [
        *["poisoned", "truncated", "empty", "folder", "absent", "wrong-hash", "wrong-name"],
        *["wrong-source", "extra", "missing", "misshaped", "foreign"],
    ],
)
def test_a_bad_input_is_refused_and_nothing_written(kind, files, capsys):
    arguments, words = spoil(kind, files)
    out = files / "out" / "a.pth"
    arguments.insert(1, str(out))
    assert main(["convert", *arguments, "--to", "timm"]) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.startswith("mmconvnextv2 convert: ")
    assert words in streams.err
    assert list(out.parent.iterdir()) == []
    assert not (files / "victim").exists()

    write_checkpoint(out, {"old": torch.ones(1)})
    before = out.read_bytes()
    assert main(["convert", *arguments, "--to", "timm"]) == 2
    assert out.read_bytes() == before and [path.name for path in out.parent.iterdir()] == ["a.pth"]


def test_the_exit_status_of_the_command(files):
    arguments, words = spoil("poisoned", files)
    command = [sys.executable, str(TOOL), *arguments, str(files / "out" / "a.pth"), "--to", "timm"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert words in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_folder_that_is_not_there_is_refused(files, capsys):
    arguments = ["convert", str(files / "run.pth"), str(files / "none" / "a.pth"), "--to", "timm"]
    assert main(arguments) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main([*arguments[:3], "--to", "keras"])
    assert exit_.value.code == 2
