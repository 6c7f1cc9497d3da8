"""`demo/image_demo_segmentation.py` with a narrow model: its picture against the labels."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from PIL import Image

import mmconvnextv2.models  # noqa: F401

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "demo" / "image_demo_segmentation.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An image of 90 x 60 pixels, the sample's config with a narrow model, and its checkpoint."""
    folder = tmp_path_factory.mktemp("demo")
    (source,) = (ROOT / "configs" / "upernet").glob("*_sample.py")
    config = Config.fromfile(source)
    config.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    config.model.decode_head.update(in_channels=(8, 8, 8, 8), channels=8)
    config.dump(folder / "config.py")
    config.model.backbone.init_cfg = None
    with torch.random.fork_rng(), DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(0)
        model = MODELS.build(config.model)
        # As drawn, the last layer's scores hardly differ, and one class would take the whole image.
        torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    meta = dict(dataset_meta=dict(classes=config.classes, palette=config.palette))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / "model.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    names = dict(image="image.png", config="config.py", checkpoint="model.pth")
    return {key: str(folder / name) for key, name in names.items()}


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    """Inferencers and Runners set the default scope of the process; it is put back afterwards."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


def test_colours_are_those_of_the_labels(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "picture.png"
    options = "--out-file", str(out), "--opacity", "1.0", "--device", "cpu"
    assert run(monkeypatch, *files.values(), *options) == 0
    picture = np.asarray(Image.open(out))
    assert picture.shape == (60, 90, 3)

    model = init_model(files["config"], files["checkpoint"], device="cpu")
    labels_HW = inference_model(model, files["image"]).pred_sem_seg.data[0].numpy()
    assert len(np.unique(labels_HW)) > 1
    expected = np.asarray(model.dataset_meta["palette"])[labels_HW]
    # Names of classes are written over a part of the picture.
    assert (np.abs(picture.astype(int) - expected).max(-1) <= 2).mean() > 0.5
    printed = capsys.readouterr().out
    for label in np.unique(labels_HW):
        share = 100 * (labels_HW == label).mean()
        assert f"{share:5.1f} % of the pixels: {model.dataset_meta['classes'][label]}" in printed
    assert str(out) in printed


@pytest.mark.parametrize("missing", ["image", "config", "checkpoint"])
def test_a_missing_file_is_named(
    missing: str,
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "picture.png"
    given = {**files, missing: str(tmp_path / "nowhere.x")}
    assert run(monkeypatch, *given.values(), "--out-file", str(out)) == 2
    assert f"no such {missing}: {tmp_path}/nowhere.x" in capsys.readouterr().err
    assert not out.exists()


def test_a_checkpoint_of_another_model_is_refused(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(files["checkpoint"], weights_only=True)
    del content["state_dict"]["backbone.stages.2.0.grn.gamma"]
    torch.save(content, tmp_path / "other.pth")
    given = {**files, "checkpoint": str(tmp_path / "other.pth")}
    out = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given.values(), "--out-file", str(out)])
    with pytest.raises(RuntimeError, match=r"stages\.2\.0\.grn\.gamma"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not out.exists()
