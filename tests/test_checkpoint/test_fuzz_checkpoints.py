"""Checkpoint files of any bytes: tensors or one clear error, and nothing is ever executed."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmconvnextv2.checkpoint import (
    StateDictMismatch,
    convert_state_dict,
    load_strictly,
    read_checkpoint,
)
from mmconvnextv2.checkpoint.validity import CheckpointError, check_checkpoint
from mmconvnextv2.nn import ConvNeXtV2

# Torch warns of legacy files and of some damage.
pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]

ARCH = dict(depths=(1, 1, 1, 1), channels=(2, 3, 4, 5))
TENSORS = {"a": torch.arange(600.0).view(20, 30), "b": torch.tensor([1, 2]), "c": torch.tensor(0.5)}
RUN = dict(
    meta=dict(epoch=1, iter=2, cfg="model = None\n"),
    state_dict=TENSORS,
    message_hub=dict(log_scalars={}, runtime_info=dict(iter=2)),
    optimizer=dict(state={0: dict(exp_avg=torch.ones(2, 3))}, param_groups=[dict(lr=1e-3)]),
)


def saved(content: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def safetensors() -> bytes:
    return pytest.importorskip("safetensors.torch").save(TENSORS)


def records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(content: dict[str, bytes]) -> bytes:
    """A zip archive with checksums that are right, whatever it holds."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


class Call:
    """An object that unpickles as the result of a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


WHOLE_RUN = saved(RUN)
OFFICIAL = saved({"model": TENSORS, "args": argparse.Namespace(lr=1e-3), "epoch": 3})
RUN_RECORDS = records(WHOLE_RUN)
FILES = (WHOLE_RUN, OFFICIAL, saved(TENSORS, zipped=False))


def check_refusal(error: ValueError, file: Path) -> None:
    text = str(error)
    assert text.startswith(f"{file} ") and len(text.splitlines()) == 1
    assert "weights_only" not in text, "torch recommends the unsafe load"


def read_or_refuse(file: Path) -> dict[str, Tensor] | None:
    """Read, with no other outcome than tensors by name or one line that names the file."""
    try:
        tensors = read_checkpoint(file)
    except ValueError as error:
        check_refusal(error, file)
        return None
    assert all(isinstance(name, str) for name in tensors)
    assert all(isinstance(value, Tensor) for value in tensors.values())
    return tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.fault(8, "checkpoints with bytes changed, put in or cut off", "one clear error")
@given(data=damaged(FILES))
def test_damaged_files(folder: Path, data: bytes) -> None:
    (folder / "a.pth").write_bytes(data)
    read_or_refuse(folder / "a.pth")


@pytest.mark.fault(8, "safetensors with bytes changed, put in or cut off", "one clear error")
@given(data=st.deferred(lambda: damaged([safetensors()])))
def test_damaged_safetensors(folder: Path, data: bytes) -> None:
    (folder / "a.safetensors").write_bytes(data)
    read_or_refuse(folder / "a.safetensors")


@pytest.mark.fault(8, "random bytes as a checkpoint", "one clear error")
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]), data=st.binary(max_size=200))
def test_random_bytes(folder: Path, start: bytes, data: bytes) -> None:
    for name in ("a.pth", "a.safetensors"):
        (folder / name).write_bytes(start + data)
        assert not read_or_refuse(folder / name)


@pytest.mark.fault(8, "checkpoints whose pickle is changed, its checksum right", "one clear error")
@given(data=damaged([data for name, data in RUN_RECORDS.items() if name.endswith("data.pkl")]))
def test_changed_pickles_in_sound_archives(folder: Path, data: bytes) -> None:
    content = {n: data if n.endswith("data.pkl") else old for n, old in RUN_RECORDS.items()}
    (folder / "a.pth").write_bytes(zipped(content))
    read_or_refuse(folder / "a.pth")


@pytest.mark.fault(8, "zip archives of other things as a checkpoint", "one clear error")
@given(
    content=st.dictionaries(
        st.sampled_from([*RUN_RECORDS, "a.txt", "archive/data.pkl", "../b", "word/document.xml"]),
        st.binary(max_size=64),
        max_size=5,
    )
)
def test_archives_of_other_things(folder: Path, content: dict[str, bytes]) -> None:
    (folder / "a.pth").write_bytes(zipped(content))
    assert not read_or_refuse(folder / "a.pth")
    assert not (folder.parent / "b").exists()


def poisons(victim: str) -> list[Call]:
    return [
        Call(os.mkdir, victim),
        Call(os.system, f"mkdir {victim}"),
        Call(eval, f"__import__('os').mkdir({victim!r})"),
        Call(exec, f"import os; os.mkdir({victim!r})"),
        Call(subprocess.check_call, ["mkdir", victim]),
        Call(getattr, Call(__import__, "os"), "mkdir"),
        Call(io.open, victim, "w"),
    ]


@pytest.mark.fault(8, "checkpoints that call a function when they are read", "refused, not called")
@given(
    which=st.integers(0, 6),
    path=st.lists(st.sampled_from(["model", "state_dict", "meta", "list", "a"]), max_size=4),
    form=st.sampled_from(["zip", "legacy", "pickle", "run"]),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_poisoned_files(
    folder: Path, which: int, path: list[str], form: str, protocol: int
) -> None:
    file, victim = folder / "a.pth", folder / "victim"
    content: object = poisons(str(victim))[which]
    for key in path:
        content = [content] if key == "list" else {**TENSORS, key: content}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content, protocol))
    elif form == "run":
        file.write_bytes(saved({**RUN, "hook": content}))
    else:
        file.write_bytes(saved(content, form == "zip"))
    assert read_or_refuse(file) is None
    with pytest.raises(CheckpointError):
        check_checkpoint(file)
    assert not victim.exists()


flips = st.tuples(st.integers(0, len(WHOLE_RUN) - 1), st.integers(0, 7))


def flipped(places: list[tuple[int, int]]) -> bytes:
    data = bytearray(WHOLE_RUN)
    for place, bit in places:
        data[place] ^= 1 << bit
    return bytes(data)


@pytest.mark.fault(
    8, "checkpoints of a run with bytes changed, put in or cut off", "none is taken for the whole"
)
@given(data=st.one_of(damaged([WHOLE_RUN]), st.lists(flips, max_size=2).map(flipped)))
def test_a_run_goes_on_from_whole_files_alone(folder: Path, data: bytes) -> None:
    file = folder / "iter_2.pth"
    file.write_bytes(data)
    try:
        progress = check_checkpoint(file)
    except CheckpointError as error:
        check_refusal(error, file)
        return
    assert tuple(progress) == (1, 2)
    content = torch.load(file, weights_only=True)
    assert all(torch.equal(content["state_dict"][name], TENSORS[name]) for name in TENSORS)
    assert torch.equal(content["optimizer"]["state"][0]["exp_avg"], torch.ones(2, 3))


def tiny() -> ConvNeXtV2:
    return ConvNeXtV2(ARCH, output_norms=False)


NAMES = tuple(tiny().state_dict())
changed_names = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["head.fc.weight", "neck.mask_token", "backbone.x", "norm3.weight", "fc.bias"]),
    st.sampled_from(NAMES).map(lambda name: name.replace(".0.", ".900000000.", 1)),
    st.sampled_from(NAMES).map(lambda name: f"backbone.{name}"),
    st.sampled_from(NAMES),
)
tensors = st.one_of(
    st.lists(st.integers(0, 4), max_size=5).map(torch.zeros),
    st.sampled_from([torch.tensor(True), torch.ones(5, dtype=torch.int8), torch.empty(0)]),
)


@st.composite
def changed_state_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    """The state_dict of a small network that lacks tensors, or has other ones."""
    state_dict = tiny().state_dict()
    for name in draw(st.sets(st.sampled_from(NAMES), max_size=2)):
        state_dict.pop(name)
    return state_dict | draw(st.dictionaries(changed_names, tensors, max_size=3))


@pytest.mark.fault(8, "weights with other names and shapes", "the network stays as it was")
@given(state_dict=changed_state_dicts())
def test_changed_state_dicts(state_dict: dict[str, Tensor]) -> None:
    net = tiny()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fits = {name: value.shape for name, value in state_dict.items()} == {
        name: value.shape for name, value in before.items()
    }
    try:
        load_strictly(net, state_dict)
        assert fits
    except StateDictMismatch as error:
        assert not fits and str(error).startswith("the checkpoint does not fit: ")
        after = net.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
    try:
        conversion = convert_state_dict(state_dict)
        assert conversion.channels == ARCH["channels"]
    except ValueError as error:
        assert str(error)
