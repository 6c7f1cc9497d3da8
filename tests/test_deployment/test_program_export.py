"""torch.export files: they run where this package cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from narrowing import ARCH

from mmconvnextv2 import nn
from mmconvnextv2.deployment import CheckFailed, MissingPackages, export

pytestmark = pytest.mark.integration

CONFIG = dict(
    model=dict(
        type="FCMAE",
        backbone=dict(
            type="ConvNeXtV2", arch=ARCH, gap_before_final_norm=False, output_norms=False
        ),
    ),
    data_preprocessor=dict(mean=[120.0, 110.0, 100.0], std=[50.0, 60.0, 70.0], to_rgb=True),
)
ALONE = """
import sys

sys.modules["mmconvnextv2"] = None  # an import of it now fails
import numpy as np
import torch

program = torch.export.load(sys.argv[1])
network = program.module()
for name in sys.argv[2:]:
    arrays = np.load(name)
    found = network(torch.from_numpy(arrays["image"]))
    for i, x in enumerate(found):
        expected = arrays[f"stage{i + 1}"]
        assert x.shape == expected.shape, (x.shape, expected.shape)
        assert np.abs(x.detach().numpy() - expected).max() < 1e-4 * np.abs(expected).max()
assert not {"mmengine", "mmpretrain", "mmcv"} & set(sys.modules)
print("ran", len(sys.argv) - 2)
"""


@pytest.fixture(scope="module")
def backbone() -> nn.ConvNeXtV2:
    torch.manual_seed(0)
    backbone = nn.ConvNeXtV2(
        ARCH, out_indices=(0, 1, 2, 3), gap_before_final_norm=False, output_norms=False
    )
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(backbone, tmp_path_factory) -> Path:
    """As pre-training writes it, under a prefix; the decoder does not matter."""
    path = tmp_path_factory.mktemp("run") / "run.pth"
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    torch.save(dict(state_dict={**tensors, "neck.mask_token": torch.ones(16)}), path)
    return path


def test_an_encoder_runs_alone_at_any_size(backbone, checkpoint, tmp_path) -> None:
    result = export(Config(CONFIG), checkpoint, tmp_path / "encoder.pt2", part="backbone")
    assert [c.shape for c in result.comparisons][::2] == [
        (1, 3, 224, 224),
        (3, 3, 96, 160),
        (2, 3, 64, 64),
    ]
    assert all(c.relative < 1e-5 for c in result.comparisons)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.pt2"]

    generator = np.random.default_rng(0)
    files = []
    for i, (batch, height, width) in enumerate([(1, 96, 64), (4, 128, 160)]):
        image_NCHW = generator.integers(0, 256, (batch, 3, height, width)).astype(np.float32)
        mean, std = (np.array(CONFIG["data_preprocessor"][key]) for key in ("mean", "std"))
        x_NCHW = (image_NCHW - mean[:, None, None]) / std[:, None, None]
        maps = backbone(torch.from_numpy(x_NCHW).float())
        arrays = {f"stage{j + 1}": x.numpy() for j, x in enumerate(maps)}
        files.append(str(tmp_path / f"{i}.npz"))
        np.savez(files[-1], image=image_NCHW, **arrays)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(result.path), *files],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "ran 2" in done.stdout, done.stderr

    extra = {"metadata.json": ""}
    torch.export.load(result.path, extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert metadata == result.metadata
    assert metadata["input"] == "image, float32 (N, C, H, W), RGB, pixel values 0 to 255"


def test_fixed_sizes_and_float16(checkpoint, tmp_path) -> None:
    out = tmp_path / "half.pt2"
    result = export(
        Config(CONFIG),
        checkpoint,
        out,
        part="backbone",
        shape=(32, 64),
        batch=2,
        float16=True,
        normalize=False,
    )
    assert {c.shape for c in result.comparisons} == {(2, 3, 32, 64)}
    assert 1e-6 < max(c.relative for c in result.comparisons) < 2e-2
    assert result.metadata["precision"] == "float16"
    program = torch.export.load(out)
    with pytest.raises(Exception, match="2|Guard|shape"):
        program.module()(torch.zeros(1, 3, 32, 64))
    kinds = {tensor.dtype for name, tensor in program.state_dict.items() if "grn" in name}
    assert kinds == {torch.float32}


def test_nothing_is_left_of_a_file_that_differs(checkpoint, tmp_path) -> None:
    options = dict(part="backbone", shape=(64, 64), batch=1, tolerance=0.0)
    with pytest.raises(CheckFailed, match="the tolerance is 0"):
        export(Config(CONFIG), checkpoint, tmp_path / "x.pt2", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "more,words",
    [
        (dict(shape=(64, 100)), "multiples of 32, got 64x100"),
        (dict(shape=(0, 64)), "multiples of 32, got 0x64"),
        (dict(batch=0), "at least 1, got 0"),
        (dict(opset=11), "between 18 and 23, got 11"),
    ],
)
def test_arguments_out_of_range_are_refused(checkpoint, tmp_path, more: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        export(Config(CONFIG), checkpoint, tmp_path / "x.pt2", part="backbone", **more)
    assert list(tmp_path.iterdir()) == []


def test_places_that_do_not_serve_are_refused(checkpoint, tmp_path) -> None:
    def refuse(error: type[Exception], name: str, words: str) -> None:
        with pytest.raises(error, match=words):
            export(Config(CONFIG), checkpoint, tmp_path / name, part="backbone")

    (tmp_path / "there.pt2").write_text("mine")
    (tmp_path / "there.onnx.data").write_text("mine")
    refuse(FileExistsError, "there.pt2", "exists: remove it")
    refuse(FileExistsError, "there.onnx", r"there\.onnx\.data exists")
    refuse(FileNotFoundError, "nowhere/x.pt2", "no folder .*nowhere")
    refuse(ValueError, "x.trt", r"end in \.onnx")
    assert (tmp_path / "there.pt2").read_text() == "mine"


def test_missing_packages_are_named(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackages, match="pip install onnx onnxscript onnxruntime"):
        export(Config(CONFIG), checkpoint, tmp_path / "x.onnx", part="backbone")
    monkeypatch.setattr("torch.__version__", "2.4.1")
    with pytest.raises(MissingPackages, match="torch 2.6 or later, this is 2.4.1"):
        export(Config(CONFIG), checkpoint, tmp_path / "x.pt2", part="backbone")
