"""tools/study.py: a real chain of narrow nets, resuming, refusing to mix, filling the page."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import narrowing
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmconvnextv2.apis import study as runner
from mmconvnextv2.apis.study import WEIGHTS
from mmconvnextv2.apis.study_definition import list_studies

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PAGE = "# Page\n\n<!-- study toy: begin -->\nNot run yet.\n<!-- study toy: end -->\n"

TOY = """
_base_ = "_cells.py"
title = "Toy"
question = "Which is better?"
tables = [
    dict(
        name="accuracy",
        title="Accuracy",
        metrics={"accuracy/top1": "top-1 (%)", "start.seconds": "pre-training (s)"},
        paper="paper: top-1",
        rows=[
            dict(label="FCMAE", cell="tuned", paper=84.9),
            dict(label="scratch", cell="scratch", paper=84.3),
        ],
        claims=[dict(says="FCMAE is better", better="FCMAE", than="scratch")],
    )
]
curves = dict(cells={"V2": "before"}, images="images", image_size=64, count=2)
"""

CELLS = f"""
arch = dict(_delete_=True, depths=(1, 1, 1, 1), channels={narrowing.CHANNELS})
loaders = {{
    f"{{name}}_dataloader.{{key}}": value
    for name in ("train", "val")
    for key, value in dict(batch_size=2, num_workers=0, persistent_workers=False).items()
}}
fcmae = dict(
    config="fcmae/fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py",
    steps=2,
    seconds=60,
    options={{
        **{{key: value for key, value in loaders.items() if key.startswith("train")}},
        "model.backbone.arch": arch,
        "model.neck.in_channels": 16,
        "model.neck.num_channels": 16,
        "train_dataloader.dataset.dataset.data_root": "images",
        "train_dataloader.dataset.dataset.pipeline.0.scale": 64,
    }},
)
classifier = dict(
    config="convnextv2/convnextv2-atto_fcmae-pre_1xb16-coslr-18e_sample.py",
    steps=2,
    seconds=30,
    options={{
        **loaders,
        "model.backbone.arch": arch,
        "model.head.in_channels": 16,
        "train_dataloader.dataset.dataset.data_root": "classes",
        "val_dataloader.dataset.data_root": "classes",
    }},
)
cells = {{
    "before": fcmae,
    "tuned": dict(classifier, start="before"),
    "scratch": classifier,
}}
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool in a folder with a toy study, its images and a page."""
    spec = importlib.util.spec_from_file_location("study_tool", ROOT / "tools" / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "toy.py").write_text(TOY)
    (tmp_path / "studies" / "_cells.py").write_text(CELLS)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "evidence.md").write_text(PAGE)
    narrowing.write_pictures(tmp_path / "images", 4, (70, 80))
    narrowing.write_classes(tmp_path / "classes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study.py"])
    monkeypatch.setattr(runner, "code_identity", lambda: {"mmconvnextv2": "as it is"})
    return module


class Toy:
    """Stands in for training: FCMAE is worth 20 points. Stops like a killed process when told."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.trained: list[str] = []
        self.killed_at = killed_at

    def __call__(self, cfg: Config) -> dict[str, float]:
        folder = Path(cfg.work_dir)
        self.trained.append(f"{folder.parent.name}/{folder.name}")
        if len(self.trained) == self.killed_at:
            raise KeyboardInterrupt
        (folder / WEIGHTS).write_bytes(b"weights")
        started = (cfg.model.backbone.get("init_cfg") or {}).get("checkpoint") is not None
        top1 = 50.0 + 20 * started + cfg.randomness.seed
        return {
            "accuracy/top1": top1,
            "train_loss": 0.5,
            "seconds": 60.0,
            "computing_seconds": 60.0,
        }


def start(tool: ModuleType, *arguments: str) -> int:
    return tool.main(["toy", "--folder", "studies", *arguments])


@pytest.mark.slow
def test_a_real_chain(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tool, "--seeds", "3", "--publish") == 0
    cells = Path("work_dirs/studies/cells")
    before, tuned = (
        torch.load(cells / name / "seed3" / WEIGHTS, weights_only=True)["state_dict"]
        for name in ("before", "tuned")
    )
    assert before.keys() >= {"backbone.stages.0.0.grn.gamma", "neck.mask_token"}
    assert "head.fc.weight" in tuned
    assert not list(cells.rglob("iter_*.pth")), "weights stay, checkpoints go"
    log = next((cells / "tuned" / "seed3").glob("*/*.log")).read_text()
    assert f"{cells}/before/seed3/{WEIGHTS}: loaded " in log
    metrics = json.loads((cells / "tuned" / "seed3" / "cell.json").read_text())["metrics"]
    assert metrics["accuracy/top1"] % 10 == 0 and metrics["seconds"] > 0  # ten images
    pretrained = json.loads((cells / "before" / "seed3" / "cell.json").read_text())["metrics"]
    assert set(pretrained) == {"train_loss", "seconds", "computing_seconds"}
    assert pretrained["computing_seconds"] > 0

    page = Path("docs/evidence.md").read_text()
    assert "Which is better?" in page and "3 cells, 1 seeds" in page
    pictures = re.findall(r"\]\((images/evidence/toy/[\w.-]+)\)", page)
    assert len(pictures) == 2
    values = json.loads(Path("docs/data/evidence/toy.json").read_text())
    assert "[Values of each seed](data/evidence/toy.json)" in page
    assert values["tables"]["accuracy"]["rows"]["FCMAE"]["accuracy/top1"]["values"] == [
        metrics["accuracy/top1"]
    ]
    for name in pictures:
        with Image.open(Path("docs") / name) as picture:
            assert picture.format == "PNG"
    content = json.loads(Path("work_dirs/studies/toy/study.json").read_text())
    (curve,) = content["tables"]["curves"]["blocks"]["V2"].values()
    assert len(curve) == 4 and all(0 <= value <= 1 for value in curve)

    capsys.readouterr()
    assert start(tool, "--seeds", "3") == 0
    assert capsys.readouterr().out.count("finished before") == 3


def test_goes_on_after_a_kill_without_repeating(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "measure_curves", lambda *_: {"V2": {0: [0.4], 1: [0.5]}})
    first, second, third = Toy(killed_at=4), Toy(), Toy()
    monkeypatch.setattr(tool, "train_and_keep_weights", first)
    with pytest.raises(KeyboardInterrupt):
        start(tool, "--seeds", "0", "1")
    assert first.trained == ["before/seed0", "tuned/seed0", "scratch/seed0", "before/seed1"]
    assert "| FCMAE | 1 | 70 | 60 | 84.9 |" in Path("work_dirs/studies/toy/study.md").read_text()

    files = sorted(Path().rglob("*"))
    assert start(tool, "--seeds", "0", "1", "--dry-run") == 0
    assert sorted(Path().rglob("*")) == files
    printed = capsys.readouterr().out
    assert "before, seed 1: begun" in printed and "tuned, seed 0: finished" in printed
    assert "toy: 3 finished, 1 begun, 2 new; about 2 min to go" in printed

    monkeypatch.setattr(tool, "train_and_keep_weights", second)
    assert start(tool, "--seeds", "0", "1", "--publish") == 0
    assert second.trained == ["before/seed1", "tuned/seed1", "scratch/seed1"]
    page = Path("docs/evidence.md").read_text()
    assert "| FCMAE | 2 | 70.5 ± 0.71 | 60 ± 0 | 84.9 |" in page and "Not run yet" not in page
    assert "**supported**: FCMAE is better (+20, 95% interval" in page
    assert "6 cells, 2 seeds, 6 minutes" in page

    # What was made otherwise is refused before anything is trained, and seen in a dry run.
    monkeypatch.setattr(tool, "train_and_keep_weights", third)
    text = Path("studies/_cells.py").read_text()
    Path("studies/_cells.py").write_text(text.replace('"model.head.in_channels": 16', '"a": 1'))
    capsys.readouterr()
    assert start(tool) == 2
    error = capsys.readouterr().err
    assert error.startswith("study.py: ") and error.count("\n") == 1
    assert "tuned/seed0 was made from something else" in error and "config a: not set" in error
    assert not third.trained
    assert start(tool, "--seeds", "0", "--dry-run") == 0
    assert "tuned, seed 0: made from something else" in capsys.readouterr().out


def test_a_dry_run_needs_no_images_and_a_run_does(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("images")
    assert start(tool, "--seeds", "0", "--dry-run") == 0
    assert "toy: 3 new; about 2 min to go" in capsys.readouterr().out
    assert start(tool, "--seeds", "0") == 2
    assert capsys.readouterr().err == "study.py: there is no file or folder images\n"


def test_errors_are_one_line_and_nothing_is_trained(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Toy()
    monkeypatch.setattr(tool, "train_and_keep_weights", toy)
    Path("docs/evidence.md").write_text("# Page\n<!-- study toy: begin -->\n")
    for arguments, message in (
        (["toys", "--folder", "studies"], "name studies of toy, or all; got ['toys']"),
        (["--folder", "studies"], "got []"),
        (["toy", "--folder", "nowhere"], "there is no study"),
        (["toy", "--folder", "studies", "--publish"], "<!-- study toy: begin -->"),
        (["toy", "--folder", "studies", "--seeds", "1", "1"], "seeds must differ"),
    ):
        assert tool.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("study.py: ") and message in error and error.count("\n") == 1
    assert not toy.trained


def test_a_longer_study_gets_its_own_part(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "measure_curves", lambda *_: {"V2": {0: [0.4]}})
    monkeypatch.setattr(tool, "train_and_keep_weights", Toy())
    assert start(tool, "--seeds", "0", "--longer", "3", "--publish") == 0
    page = Path("docs/evidence.md").read_text()
    assert page.startswith(PAGE), "what is there stays"
    assert "## Toy, 3 times as long\n\n<!-- study toy-x3: begin -->\nWhich is better?" in page
    assert "`python tools/study.py toy --longer 3` on" in page
    assert Path("docs/images/evidence/toy-x3/toy-accuracy.png").is_file()
    assert Path("docs/data/evidence/toy-x3.json").is_file()


def test_a_metric_that_a_cell_does_not_have_is_one_line(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "train_and_keep_weights", Toy())
    text = Path("studies/toy.py").read_text()
    Path("studies/toy.py").write_text(text.replace('"accuracy/top1"', '"mIoU"'))
    assert start(tool, "--seeds", "0") == 2
    error = capsys.readouterr().err
    assert error.startswith("study.py: table 'accuracy' shows mIoU, which cell 'tuned' does not")
    assert error.count("\n") == 1


def test_the_list_says_what_studies_cost(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--list", "--folder", "studies"]) == 0
    assert re.search(r"toy\s+3 cells a seed,\s+2 min\s+Toy", capsys.readouterr().out)


def test_the_page_has_a_place_for_each_study(tool: ModuleType) -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    for name in list_studies(tool.FOLDER):
        assert page.count(f"<!-- study {name}: begin -->") == 1
