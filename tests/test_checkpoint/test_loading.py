"""Safe reading and strict loading: all tensors or none, and every difference by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from mmconvnextv2.checkpoint import (
    StateDictMismatch,
    backbone_state_dict,
    load_strictly,
    read_checkpoint,
)
from mmconvnextv2.checkpoint.loading import OUTPUT_NORM
from mmconvnextv2.nn import ConvNeXtV2

pytestmark = pytest.mark.unit


class Poison:
    """An object whose unpickling would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.fixture
def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_read(module: nn.Module, tmp_path: Path, key: str | None) -> None:
    state = module.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) for k in state)


def test_poison_is_refused_and_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    torch.save({"state_dict": Poison(victim)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=re.escape("a.pth cannot be read")):
        read_checkpoint(tmp_path / "a.pth")
    assert not victim.exists()


def test_what_is_no_checkpoint(tmp_path: Path, module: nn.Module) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "empty.pth").touch()
    torch.save(module.state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("empty", "cut", "text", "list"):
        with pytest.raises(ValueError, match=f"{name}.pth"):
            read_checkpoint(tmp_path / f"{name}.pth")


def test_backbone_prefix() -> None:
    tensor = torch.zeros(1)
    model = {"backbone.a": tensor, "neck.b": tensor}
    assert list(backbone_state_dict(model)) == ["a"]
    assert list(backbone_state_dict(model, "backbone")) == ["a"]
    assert list(backbone_state_dict({"a": tensor})) == ["a"]
    with pytest.raises(StateDictMismatch, match="no key begins with 'encoder.'"):
        backbone_state_dict(model, "encoder.")


def test_every_difference_is_named_and_nothing_is_loaded(module: nn.Module) -> None:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {key: torch.full_like(value, 7) for key, value in before.items()}
    del state["0.bias"]
    state["extra"] = torch.zeros(1)
    state["1.weight"] = torch.zeros(5, 5)
    with pytest.raises(StateDictMismatch) as caught:
        load_strictly(module, state)
    message = str(caught.value)
    assert "2 of 4 tensors match" in message
    assert "1 missing: 0.bias" in message
    assert "1 unexpected: extra" in message
    assert "1.weight: (5, 5) in the file, (2, 4) in the model" in message
    assert all(torch.equal(module.state_dict()[key], before[key]) for key in before)


def test_output_norms_may_differ(tiny_arch: dict) -> None:
    dense = ConvNeXtV2(tiny_arch, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
    encoder = ConvNeXtV2(tiny_arch, output_norms=False, gap_before_final_norm=False)
    summary = load_strictly(dense, encoder.state_dict(), OUTPUT_NORM)
    total, norms = len(dense.state_dict()), 8
    assert f"loaded {total - norms} of {total} tensors; start fresh: norm0.weight" in summary
    assert torch.equal(dense.stages[2][1].grn.gamma, encoder.stages[2][1].grn.gamma)
    assert torch.equal(dense.downsample_layers[0][0].weight, encoder.downsample_layers[0][0].weight)
    with pytest.raises(StateDictMismatch, match="8 missing: norm0.weight"):
        load_strictly(dense, encoder.state_dict())
