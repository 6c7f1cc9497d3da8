"""The demo scripts of classification: the label on the picture, and the pictured features."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.apis import ImageClassificationInferencer
from mmpretrain.registry import MODELS
from PIL import Image
from sklearn.decomposition import PCA

from mmconvnextv2 import nn

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
CLASSIFY = ROOT / "demo" / "image_demo_classification.py"
EXTRACT = ROOT / "demo" / "feature_extraction.py"
NARROW = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 16))
CLASSES = tuple(f"digit_{digit}" for digit in range(10))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An image of 90 x 60 pixels, a classifier's config with a narrow model, its checkpoint."""
    folder = tmp_path_factory.mktemp("demo")
    (source,) = (ROOT / "configs" / "convnextv2").glob("*_sample.py")
    config = Config.fromfile(source)
    config.model.backbone.arch = NARROW
    config.model.head.in_channels = 16
    config.dump(folder / "config.py")
    config.model.backbone.init_cfg = None
    with torch.random.fork_rng(), DefaultScope.overwrite_default_scope("mmpretrain"):
        torch.manual_seed(0)
        model = MODELS.build(config.model)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / "model.pth")
    # Two halves that no encoder takes for the same.
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    pixels[:, 45:] = 0
    Image.fromarray(pixels).save(folder / "image.png")
    names = dict(image="image.png", config="config.py", checkpoint="model.pth")
    return {key: str(folder / name) for key, name in names.items()}


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    """Inferencers and Runners set the default scope of the process; it is put back afterwards."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


def run(monkeypatch: pytest.MonkeyPatch, script: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code


def test_prints_and_draws_what_the_inferencer_says(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "picture.png"
    options = "--out-file", str(out), "--topk", "3", "--device", "cpu"
    assert run(monkeypatch, CLASSIFY, *files.values(), *options) == 0
    printed = capsys.readouterr().out
    inferencer = ImageClassificationInferencer(
        files["config"], pretrained=files["checkpoint"], device="cpu"
    )
    (result,) = inferencer(files["image"])
    order = np.argsort(-result["pred_scores"])
    lines = [f"{100 * result['pred_scores'][k]:5.1f} %  {CLASSES[k]}" for k in order[:3]]
    assert "\n".join(lines) in printed
    assert CLASSES[order[3]] not in printed

    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape == (480, 720, 3)
    plain = np.asarray(Image.open(files["image"]).resize((720, 480)))
    dark = plain[:, 400:].max(-1) < 8
    written = picture[:, 400:][dark].max(-1) > 100
    assert not written.any(), "the label stands on the left"
    assert (np.abs(picture[:240, :400].astype(int) - plain[:240, :400]) > 100).any()


@pytest.mark.parametrize("script", [CLASSIFY, EXTRACT], ids=["classify", "extract"])
@pytest.mark.parametrize("missing", ["image", "config", "checkpoint"])
def test_a_missing_file_is_named(
    script: Path,
    missing: str,
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "picture.png"
    given = {**files, missing: str(tmp_path / "nowhere.x")}
    assert run(monkeypatch, script, *given.values(), "--out-file", str(out)) == 2
    assert f"no such {missing}: {tmp_path}/nowhere.x" in capsys.readouterr().err
    assert not out.exists()


def test_features_are_those_of_the_plain_network(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The picture's third panel against `mmconvnextv2.nn` and scikit-learn's PCA."""
    out = tmp_path / "features.png"
    options = "--out-file", str(out), "--short-side", "128", "--device", "cpu"
    assert run(monkeypatch, EXTRACT, *files.values(), *options) == 0
    printed = capsys.readouterr().out
    assert "stride 16: (8, 8, 12)" in printed
    assert "stride 32: (16, 4, 6)" in printed

    width, height = 192, 128
    picture = np.asarray(Image.open(out))
    assert picture.shape == (height, 3 * width, 3)
    state = torch.load(files["checkpoint"], weights_only=True)["state_dict"]
    net = nn.ConvNeXtV2(arch=NARROW, gap_before_final_norm=False, output_norms=False).eval()
    plain = {
        key.removeprefix("backbone."): value
        for key, value in state.items()
        if key.startswith("backbone.") and "norm3" not in key
    }
    net.load_state_dict(plain)
    resized = cv2.resize(cv2.imread(files["image"]), (width, height))[..., ::-1].astype(np.float32)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    x_NCHW = torch.from_numpy(((resized - mean) / std).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        feature_CHW = net(x_NCHW)[-1][0]
    scores_N3 = PCA(3, svd_solver="full").fit_transform(feature_CHW.flatten(1).T.numpy())
    shown_N3 = picture[height // 8 :: 32, 2 * width :][:, 16::32].reshape(-1, 3).astype(float)
    assert shown_N3.shape == scores_N3.shape
    for component in range(3):
        correlation = np.corrcoef(shown_N3[:, component], scores_N3[:, component])[0, 1]
        assert abs(correlation) > 0.95, component


def test_features_take_pretraining_s_checkpoint_and_no_other(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = torch.load(files["checkpoint"], weights_only=True)["state_dict"]
    encoder = {
        key: value
        for key, value in state.items()
        if key.startswith("backbone.") and "norm3" not in key
    }
    torch.save(
        dict(state_dict=dict(encoder, **{"neck.mask_token": torch.zeros(3)})), tmp_path / "a"
    )
    given = {**files, "checkpoint": str(tmp_path / "a")}
    out = tmp_path / "features.png"
    options = "--out-file", str(out), "--short-side", "64", "--device", "cpu"
    assert run(monkeypatch, EXTRACT, *given.values(), *options) == 0
    out.unlink()

    del encoder["backbone.stages.2.0.grn.gamma"]
    torch.save(dict(state_dict=encoder), tmp_path / "a")
    assert run(monkeypatch, EXTRACT, *given.values(), *options) == 2
    assert "stages.2.0.grn.gamma" in capsys.readouterr().err
    assert not out.exists()
