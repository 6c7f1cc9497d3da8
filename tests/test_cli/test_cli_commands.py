"""From a command line to the Python call and back: arguments, summaries, errors, exit codes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import mmconvnextv2
from mmconvnextv2.apis.launch import USER_ERRORS
from mmconvnextv2.cli.console import FOR_THE_RECORD
from mmconvnextv2.cli.main import main

pytestmark = pytest.mark.unit


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand-ins for the calls, which note their arguments; what they return is of one shape.

    The commands run in a folder with what they are to read.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "sets/my maps", "a", "b"):
        (tmp_path / name).mkdir(parents=True)
    noted: list[dict[str, Any]] = []

    def stand_in(**arguments: Any) -> Any:
        noted.append(arguments)
        out = Path(arguments["out"])
        metrics = {"first_loss": 1.005, "last_loss": 0.63512, "coco/segm_mAP": 0.25}
        return SimpleNamespace(
            task=arguments.get("task", "pretraining"),
            out=out,
            config=out / "config.py",
            checkpoint=out / "epoch_3.pth",
            metrics=metrics,
            seconds=1200.0,
            images_per_second=103.4,
            pictures=(out / "a.png", out / "b.png"),
            predictions=out / "predictions.json",
            width=10,
            height=20,
        )

    for name in ("pretrain", "finetune", "reconstruct", "predict"):
        monkeypatch.setitem(vars(mmconvnextv2), name, stand_in)
    return noted


def test_pretrain(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "pretrain --data photos --out runs/1 --arch atto --epochs 3 --mask-ratio 0.5 --overwrite "
        "--cfg-options a.b=1 c=[2,3] --cfg-options d=x"
    )
    assert main(line.split()) == 0
    # What is not given is left to the call.
    assert calls == [
        dict(
            data="photos",
            out="runs/1",
            arch="atto",
            epochs=3,
            mask_ratio=0.5,
            overwrite=True,
            cfg_options={"a.b": 1, "c": [2, 3], "d": "x"},
        )
    ]
    said = capsys.readouterr().out
    for words in (
        "included 20 min 0 s",
        "median step 103",
        "the last 10 steps 0.6351",
        "runs/1/epoch_3.pth",
    ):
        assert words in " ".join(said.split())
    assert said.splitlines()[-1] == (
        "next: mmconvnextv2 reconstruct --images photos --checkpoint runs/1 --out runs/grid.png"
    )


def test_finetune(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["finetune", "--task", "segmentation", "--data", "sets/my maps", "--out", "runs/2"]
    assert main([*line, "--init", "hf://timm/convnextv2_atto.fcmae", "--resume"]) == 0
    (given,) = calls
    assert given["init"] == "hf://timm/convnextv2_atto.fcmae"
    assert given["resume"] is True
    assert capsys.readouterr().out.splitlines()[-1] == (
        "next: mmconvnextv2 predict --images 'sets/my maps/images/validation' "
        "--checkpoint runs/2 --out runs/found"
    )


def test_reconstruct_and_predict(
    calls: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = tmp_path / "my run"
    run_folder.mkdir()
    (run_folder / "config.py").touch()
    line = ["--images", "photos", "--checkpoint", str(run_folder)]
    assert main(["reconstruct", *line, "--image-size", "96"]) == 0
    assert calls.pop() == dict(
        images="photos",
        checkpoint=str(run_folder),
        out="reconstruction.png",
        image_size=(96, 96),
    )
    said = capsys.readouterr().out
    assert "10x20" in said
    assert said.splitlines()[-1].endswith(f"--init '{run_folder}' --out {tmp_path / 'detection'}")
    assert main(["predict", *line, "--out", "found", "--score", "0.3"]) == 0
    assert calls.pop()["score"] == 0.3
    said = capsys.readouterr().out
    assert "found/predictions.json" in said
    assert said.splitlines()[-1] == f"next: mmconvnextv2 report '{run_folder}'"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("pretrain --data photo", "--data: photo does not exist; {here} does"),
        ("finetune --task detection --data /val --out x", "--data: /val does not exist; is the"),
        ("predict --images photos --checkpoint c --out x", "--checkpoint: c does not exist"),
        ("reconstruct --images= --checkpoint b", "--images: an empty path does not exist; is the"),
    ],
)
def test_a_path_that_is_not_there_is_told_before_the_call(
    line: str, says: str, calls: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert says.format(here=tmp_path) in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize("place", ["before", "behind"])
def test_debug_shows_the_traceback(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["convert", str(tmp_path / "none.pth"), "out.pth", "--to", "timm"]
    assert main(line) == 2
    plain = capsys.readouterr().err
    assert "Traceback" not in plain and plain.count("\n") == 1 and "none.pth" in plain
    assert main(["--debug", *line] if place == "before" else [*line, "--debug"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith(plain)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a value"), 2),
        (OSError(28, "No space left on device"), 2),
        (ModuleNotFoundError("No module named 'mmcv'", name="mmcv"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_what_the_user_can_put_right_is_one_sentence(
    calls: list,
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**arguments: Any) -> None:
        raise error

    monkeypatch.setitem(vars(mmconvnextv2), "predict", fail)
    line = ["predict", "--images", "a", "--checkpoint", "b", "--out", "c"]
    assert main(line) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("mmconvnextv2 predict: ")
    assert ("doctor" in said) == isinstance(error, ImportError)


def test_errors_of_a_run_are_the_users_and_faults_are_not(
    calls: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**arguments: Any) -> None:
        # Some of them describe themselves from other arguments than a text.
        raise kind.__new__(kind, "what happened")

    monkeypatch.setitem(vars(mmconvnextv2), "predict", fail)
    line = ["predict", "--images", "a", "--checkpoint", "b", "--out", "c"]
    for kind in USER_ERRORS:  # noqa: B007  `fail` uses it
        assert main(line) == 2
        assert capsys.readouterr().err == "mmconvnextv2 predict: what happened\n"
    for kind in (KeyError, RuntimeError, AssertionError):
        with pytest.raises(kind):
            main(line)


def test_the_demo_says_how_to_install_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    said = capsys.readouterr().err
    assert "mmconvnextv2[web]" in said and said.count("\n") == 1


def test_a_benchmark_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "report", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.startswith("mmconvnextv2 benchmark: ")


STEP = (
    "Epoch(train) [1][10/12]  base_lr: 1.2e-04 lr: 1.0e-05  eta: 0:39:05  time: 3.2  "
    "data_time: 0.03  grad_norm: 32.2  loss: 4.2  loss_cls: 0.9  acc: 75.0"
)


def test_the_console_of_a_run_leaves_out_what_is_for_the_record(
    calls: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a real Runner, which logs before any hook can act."""
    stand_in = mmconvnextv2.pretrain
    log: list[str] = []

    def build_runner(**arguments: Any) -> Any:
        runner = Runner(
            model=torch.nn.Linear(1, 1), work_dir=str(tmp_path), cfg=Config(dict(x="a setting"))
        )
        runner.logger.info("a line\nand another")
        runner.logger.info(STEP)
        runner.logger.info("\n Average Precision  (AP) @[ IoU=0.50:0.95 | area= large ] = -1.000")
        print("Could not import OneDL")
        print("a line that is printed")
        log.append((tmp_path / runner.timestamp / f"{runner.timestamp}.log").read_text())
        return stand_in(**arguments)

    monkeypatch.setitem(vars(mmconvnextv2), "pretrain", build_runner)
    assert main(["pretrain", "--data", "photos", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for words in FOR_THE_RECORD[:2]:
        assert words in log[0] and words not in said
    assert "a setting" not in said
    assert STEP in log[0] and "Average Precision" in log[0] and "Average Precision" not in said
    assert re.search(
        r"a line\nand another\n.* - INFO - Epoch\(train\) \[1\]\[10/12\]  lr: 1.0e-05  "
        r"eta: 0:39:05  time: 3.2  loss: 4.2\na line that is printed\n",
        said,
    )
    assert re.search(rf"^  log +{tmp_path}/.*\.log$", said, re.MULTILINE)
