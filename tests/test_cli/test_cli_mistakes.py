"""What a user can get wrong in training: one sentence, exit code 2, no traceback."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmconvnextv2.cli.main import main
from mmconvnextv2.datasets.sample_set import (
    ClassificationSpec,
    DetectionSpec,
    PretrainSpec,
    SegmentationSpec,
    build_sample_set,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sample_set(
        tmp_path_factory.mktemp("sample") / "set",
        pretrain=PretrainSpec(num_train=4),
        classification=ClassificationSpec(num_train=20, num_val=10),
        detection=DetectionSpec(num_train=4, num_val=2),
        segmentation=SegmentationSpec(num_train=4, num_val=2),
    )


@pytest.fixture
def copy(sample_set: Path, tmp_path: Path) -> Callable[[str], Path]:
    """One part of the sample set, to be spoilt."""
    return lambda part: Path(shutil.copytree(sample_set / part, tmp_path / part))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that has to fail for the user to put right; returns what it says."""

    def run(*words: str | Path) -> str:
        before = sorted(tmp_path.rglob("*"))
        line = [*map(str, words), "--out", str(tmp_path / "out")]
        assert main([*line, "--num-workers", "0", "--image-size", "64"]) == 2
        said = [text for text in capsys.readouterr().err.splitlines() if "Warning" not in text]
        assert "Traceback" not in "".join(said)
        (sentence,) = (text for text in said if text.startswith(f"mmconvnextv2 {words[0]}: "))
        assert sentence == said[-1], "nothing follows"
        # A log may tell of the attempt; weights there are none.
        left = {path for path in tmp_path.rglob("*") if path not in before}
        assert not [path for path in left if path.suffix == ".pth"]
        return sentence

    return run


def test_no_images(refused: Callable, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no image in" in refused("pretrain", "--data", tmp_path / "empty", "--arch", "atto")


def test_a_wrong_path(refused: Callable, tmp_path: Path) -> None:
    for command in (["pretrain"], ["finetune", "--task", "detection"]):
        assert "nowhere" in refused(*command, "--data", tmp_path / "nowhere")


def test_labels_are_missing(refused: Callable, sample_set: Path) -> None:
    said = refused("finetune", "--task", "detection", "--data", sample_set / "pretrain")
    assert "annotations/instances_train.json" in said
    said = refused("finetune", "--task", "segmentation", "--data", sample_set / "detection")
    assert "annotations/training" in said


def test_a_coco_file_without_masks(refused: Callable, copy: Callable) -> None:
    data = copy("detection")
    for file in (data / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    assert "mask" in refused("finetune", "--task", "detection", "--data", data)


def test_classes_that_differ_between_the_parts(refused: Callable, copy: Callable) -> None:
    data = copy("classification")
    shutil.rmtree(sorted((data / "val").iterdir())[0])
    assert "class" in refused("finetune", "--task", "classification", "--data", data)


def test_a_folder_that_is_not_empty(refused: Callable, sample_set: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    said = refused("pretrain", "--data", sample_set / "pretrain", "--arch", "atto")
    assert "thesis.txt" in said and "--overwrite" in said
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_no_space(refused: Callable, sample_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    line = ["--data", sample_set / "pretrain", "--arch", "atto", "--batch-size", "2"]
    assert "free" in refused("pretrain", *line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_where_one_was_asked_for(refused: Callable, sample_set: Path) -> None:
    line = ["--data", sample_set / "pretrain", "--arch", "atto", "--device", "cuda"]
    assert "cuda" in refused("pretrain", *line)


def test_weights_that_are_not_there(refused: Callable, sample_set: Path, tmp_path: Path) -> None:
    (tmp_path / "no run").mkdir()
    for name in ("none.pth", "no run"):
        line = ["--data", sample_set / "pretrain", "--init", tmp_path / name]
        assert name in refused("pretrain", *line)
