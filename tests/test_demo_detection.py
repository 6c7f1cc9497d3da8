"""Detection as users call it: mmdet's two interfaces and the demo, from a checkpoint on the CPU."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmdet.apis import DetInferencer, inference_detector, init_detector  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "configs/mask_rcnn/mask-rcnn_convnextv2-atto_fpn_1xb4-1e_sample.py"
DEMO = ROOT / "demo/image_demo_detection.py"
CLASSES = tuple(f"digit_{digit}" for digit in range(10))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A config with narrow parts as a file, a checkpoint as the Runner writes it, an image.

    The config names weights and data that are not there, as on a machine that only predicts.
    """
    folder = tmp_path_factory.mktemp("trained")
    config = Config.fromfile(SAMPLE)
    config.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 16))
    config.model.neck.in_channels = [8, 8, 8, 16]
    config.test_dataloader.dataset.data_root = str(folder / "absent/")
    config.dump(folder / "config.py")
    with DefaultScope.overwrite_default_scope("mmdet"), torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS.build(config.model)
    state = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES)))
    torch.save(state, folder / "epoch_4.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return dict(
        config=str(folder / "config.py"),
        checkpoint=str(folder / "epoch_4.pth"),
        image=str(folder / "image.png"),
    )


def test_init_detector_and_inference_detector(trained: dict[str, str]) -> None:
    model = init_detector(trained["config"], trained["checkpoint"], device="cpu")
    assert model.dataset_meta["classes"] == CLASSES
    saved = torch.load(trained["checkpoint"], weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    found = inference_detector(model, trained["image"]).pred_instances
    assert 0 < len(found) <= 20
    assert found.masks.shape == (len(found), 90, 120)
    x1, y1, x2, y2 = found.bboxes.T
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 120).all() and (y2 <= 90).all()


def test_det_inferencer_says_the_same(trained: dict[str, str]) -> None:
    model = init_detector(trained["config"], trained["checkpoint"], device="cpu")
    expected = inference_detector(model, trained["image"]).pred_instances
    inferencer = DetInferencer(trained["config"], trained["checkpoint"], device="cpu")
    (found,) = inferencer(trained["image"])["predictions"]
    np.testing.assert_allclose(found["scores"], expected.scores.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["bboxes"], expected.bboxes.numpy(), rtol=1e-4, atol=1e-3)
    assert found["labels"] == expected.labels.tolist()


def run_demo(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(DEMO), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(DEMO), run_name="__main__")
    return stopped.value.code


def test_demo_writes_the_picture(
    trained: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    places = [trained[name] for name in ("image", "config", "checkpoint")]
    drawn, untouched = tmp_path / "drawn.png", tmp_path / "untouched.png"
    assert run_demo(monkeypatch, *places, "--out-file", str(drawn), "--score-thr", "0") == 0
    assert str(drawn) in capsys.readouterr().out
    assert run_demo(monkeypatch, *places, "--out-file", str(untouched), "--score-thr", "0.99") == 0
    source = np.asarray(Image.open(trained["image"]), dtype=int)
    picture = np.asarray(Image.open(drawn), dtype=int)
    assert picture.shape == source.shape and (picture != source).mean() > 0.01
    # Colours are those of the image where nothing is drawn; matplotlib rounds.
    difference = np.abs(np.asarray(Image.open(untouched), dtype=int) - source)
    assert np.median(difference) <= 1


def test_demo_refuses_what_does_not_fit(
    trained: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    image, config = trained["image"], trained["config"]
    out = tmp_path / "picture.png"
    gone = str(tmp_path / "gone.pth")
    assert run_demo(monkeypatch, image, config, gone, "--out-file", str(out)) == 2
    assert f"no such checkpoint: {gone}" in capsys.readouterr().err
    other = tmp_path / "other.pth"
    state = torch.load(trained["checkpoint"], weights_only=True)
    state["state_dict"].pop("rpn_head.rpn_cls.weight")
    torch.save(state, other)
    monkeypatch.setattr(sys, "argv", [str(DEMO), image, config, str(other), "--out-file", str(out)])
    with pytest.raises(RuntimeError, match=r"rpn_head\.rpn_cls\.weight"):
        runpy.run_path(str(DEMO), run_name="__main__")
    assert not out.exists()


def test_demo_prints_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run_demo(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert "--out-file" in printed and "checkpoint" in printed
