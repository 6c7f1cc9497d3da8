"""tools/dataset_converters/measure_normalization.py: the numbers, the file, one line an error."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.unit

TOOL = Path(__file__).parents[2] / "tools" / "dataset_converters" / "measure_normalization.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_normalization_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 65536, (3, 20, 30, 2)).astype(np.uint16)
    for number, image in enumerate(images):
        np.save(folder / f"{number}.npy", image)
    return images.reshape(-1, 2).astype(np.float64)


def test_it_writes_and_prints_the_numbers(tool, tmp_path, capsys):
    pixels_PC = write(tmp_path)
    out = tmp_path / "normalization.json"
    assert tool.main([str(tmp_path), "--out", str(out), "--percentiles", "0", "100"]) == 0
    document = json.loads(out.read_text())
    np.testing.assert_allclose(document["mean"], pixels_PC.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(document["std"], pixels_PC.std(axis=0), rtol=1e-12)
    assert document["low"] == pixels_PC.min(axis=0).tolist()
    printed = capsys.readouterr().out
    assert "3 images, 2 x uint16" in printed
    assert f"mean = {document['mean']}" in printed
    assert f"clip = ({document['low']}, {document['high']})" in printed


def test_errors_are_one_line_and_write_nothing(tool, tmp_path, capsys):
    out = tmp_path / "out" / "n.json"
    assert tool.main([str(tmp_path / "none"), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("error: no image folder at")
    write(tmp_path)
    np.save(tmp_path / "0.npy", np.full((4, 4, 2), np.nan))
    assert tool.main([str(tmp_path), "--out", str(out)]) == 1
    assert "number types" in capsys.readouterr().err
    assert not out.parent.exists()
