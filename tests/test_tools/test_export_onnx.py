"""tools/deployment/export_onnx.py: exit status, what it prints, what it leaves behind."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from narrowing import ARCH

from mmconvnextv2 import nn

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CONFIG = f"""
default_scope = "mmpretrain"
custom_imports = dict(imports=["mmconvnextv2.models"], allow_failed_imports=False)
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(mean=[120.0, 110.0, 100.0], std=[50.0, 60.0, 70.0], to_rgb=True),
    backbone=dict(type="ConvNeXtV2", arch={ARCH}),
    head=dict(type="LinearClsHead", num_classes=7, in_channels=16),
)
"""
DETECTOR = """
model = dict(type="MaskRCNN", backbone=dict(type="mmpretrain.ConvNeXtV2"))
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "deployment" / "export_onnx.py"
    spec = importlib.util.spec_from_file_location("export_onnx", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path) -> Path:
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "detector.py").write_text(DETECTOR)
    torch.manual_seed(0)
    backbone = nn.ConvNeXtV2(ARCH)
    tensors = {f"backbone.{k}": torch.randn_like(v) for k, v in backbone.state_dict().items()}
    tensors.update({"head.fc.weight": torch.randn(7, 16), "head.fc.bias": torch.randn(7)})
    torch.save(dict(state_dict=tensors), tmp_path / "run.pth")
    (tmp_path / "out").mkdir()
    return tmp_path


def arguments(files: Path, *more: str, config: str = "config.py", out: str = "x.pt2") -> list[str]:
    return [str(files / config), str(files / "run.pth"), str(files / "out" / out), *more]


def test_it_says_what_it_wrote(files, tool, capsys) -> None:
    assert tool.main(arguments(files, "--shape", "64", "96")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "x.pt2: 0." in lines[0] and lines[0].endswith("MiB")
    assert "image, float32 (N, C, H, W), RGB, pixel values 0 to 255" in lines[1]
    checked = [line.split()[1] for line in lines if "checked" in line]
    assert checked == ["1x3x64x96"] * 2 + ["3x3x64x96"] * 2
    errors = [float(line.split("max error ")[1].split(",")[0]) for line in lines[-4:]]
    assert max(errors) < 1e-2
    network = torch.export.load(files / "out" / "x.pt2").module()
    assert network(torch.zeros(2, 3, 64, 96))[0].shape == (2, 7)


def test_onnx_with_every_option(files, tool, capsys) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"ONNX export needs {name}")
    options = "--part backbone --batch 2 --shape 64 64 --no-normalize --fp16 --opset 20".split()
    assert tool.main(arguments(files, *options, "--tolerance", "0.1", out="x.onnx")) == 0
    assert "(pixels - [120.0, 110.0, 100.0]) / [50.0, 60.0, 70.0]" in capsys.readouterr().out
    import onnx

    graph = onnx.load(files / "out" / "x.onnx")
    assert graph.opset_import[0].version == 20
    assert [output.name for output in graph.graph.output] == [f"stage{i}" for i in (1, 2, 3, 4)]


def test_a_difference_is_status_one(files, tool, capsys) -> None:
    options = ["--shape", "64", "64", "--batch", "1", "--tolerance", "0"]
    assert tool.main(arguments(files, *options)) == 1
    streams = capsys.readouterr()
    assert streams.out == "" and "was not written" in streams.err and "max error" in streams.err
    assert list((files / "out").iterdir()) == []


def refused(tool: ModuleType, capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The message of a call that has to fail with status 2."""
    assert tool.main(argv) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and "Traceback" not in streams.err
    return streams.err


def test_bad_input_is_status_two(files, tool, capsys) -> None:
    def message(*more: str, **names: str) -> str:
        return refused(tool, capsys, arguments(files, *more, **names))

    assert "multiples of 32, got 64x100" in message("--shape", "64", "100")
    assert "at least 1, got 0" in message("--batch", "0")
    assert "is MaskRCNN" in message(config="detector.py")
    assert "nowhere.py" in message(config="nowhere.py")
    assert "no folder" in message(out="nowhere/x.onnx")
    assert "end in .onnx" in message(out="x.engine")
    (files / "out" / "x.pt2").write_text("mine")
    assert "exists" in message()
    assert (files / "out" / "x.pt2").read_text() == "mine"
    (files / "out" / "x.pt2").unlink()
    tensors = torch.load(files / "run.pth", weights_only=True)["state_dict"]
    torch.save({**tensors, "head.fc.bias": torch.zeros(9)}, files / "run.pth")
    assert "head.fc.bias: (9,) in the file, (7,) in the model" in message()
    (files / "run.pth").unlink()
    assert "run.pth does not exist" in message()
    assert list((files / "out").iterdir()) == []


def test_missing_packages_are_status_two(files, tool, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = refused(tool, capsys, arguments(files, out="x.onnx"))
    assert "pip install onnx onnxscript onnxruntime" in text and text.count("\n") == 1
