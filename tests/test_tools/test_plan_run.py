"""tools/analysis_tools/plan_run.py: figures by hand, every source of a step, one line an error."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmconvnextv2.benchmark.__main__ import main as benchmark

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "analysis_tools" / "plan_run.py"
CONFIGS = ROOT / "configs"
BASE = CONFIGS / "fcmae" / "fcmae_convnextv2-base_64xb64-coslr-1600e_in1k.py"
UPERNET = CONFIGS / "upernet" / "convnextv2-atto_upernet_8xb2-amp-160k_ade20k-512x512.py"
STEP = ["--step-seconds", "0.25", "--batch", "64"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_run", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_config(path: Path, arch: str, channels: int, size: int = 64) -> str:
    """A pre-training config for small crops and two images a batch."""
    path.write_text(
        f"_base_ = {str(CONFIGS / '_base_' / 'fcmae.py')!r}\n"
        f"model = dict(backbone=dict(arch={arch}), neck=dict(in_channels={channels}))\n"
        f"train_pipeline = _base_.train_pipeline\n"
        f"train_pipeline[0].scale = {size}\n"
        f"train_dataloader = dict(batch_size=2, dataset=dict(dataset=dict("
        f"pipeline=train_pipeline)))\n"
        f"auto_scale_lr = dict(base_batch_size=16)\n"
    )
    return str(path)


NARROW = ("dict(_delete_=True, depths=(1, 1, 1, 1), channels=(8, 8, 8, 16))", 16)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the benchmark itself writes about Atto."""
    path = tmp_path_factory.mktemp("benchmark") / "atto.json"
    size = "--arch atto --batch 1 --image-size 64"
    effort = "--repeat 1 --warmup 0 --min-seconds 0 --only step/packed"
    arguments = ["pretrain_step", *size.split(), *effort.split(), "--json", str(path)]
    assert benchmark(arguments) == 0
    return path


def rows_of(text: str) -> dict[int, list[str]]:
    """Cells of the table by number of processes."""
    lines = [line for line in text.splitlines() if re.match(r" *\d", line)]
    cells = [re.split(r"  +", line.strip()) for line in lines]
    return {int(row[0]): row[1:] for row in cells}


def test_the_full_recipe_of_base(tool, capsys):
    assert tool.main([str(BASE), *STEP, "--processes", "1", "8", "64"]) == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    # 20018, 2502 and 312 batches an epoch, 1600 epochs, a quarter of a second each.
    updates = {1: 20018 * 1600, 8: 2502 * 1600, 64: 312 * 1600}
    run = {1: "92.7 days", 8: "11.6 days", 64: "34 h 40 min"}
    for n in (1, 8, 64):
        kind = "measured" if n == 1 else "extrapolated"
        assert rows[n][:2] == ["0.25", kind]
        assert float(rows[n][2]) == pytest.approx(256 * n, rel=1e-3)
        assert rows[n][3:5] == [str(64 * n), str(updates[n])]
        assert rows[n][6:] == [run[n], "not measured"]
    # 91 922 432 parameters of 4 bytes; two moments.
    assert "parameters 367.7 MB, gradients 367.7 MB" in output and "state 735.4 MB" in output
    assert "upper bound" in output
    assert "accumulative_counts=64 with 1, 8 with 8, 1 with 64" in output


def test_efficiency_and_a_schedule_in_iterations(tool, capsys):
    arguments = [*STEP[:3], "2", "--efficiency", "0.5"]
    assert tool.main([str(UPERNET), *arguments, "--processes", "1", "8"]) == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    # 160 000 x 0.25 s = 11 h 6.7 min; at half the speed twice that.
    assert rows[1][:2] == ["0.25", "measured"] and rows[1][6] == "11 h 7 min"
    assert rows[8][:2] == ["0.5", "extrapolated"] and rows[8][6] == "22 h 13 min"
    assert rows[1][4] == rows[8][4] == "160000"
    assert "efficiency of 0.5:" in output and "upper bound" not in output


def test_steps_measured_here(tool, capsys, tmp_path):
    config = write_config(tmp_path / "narrow.py", *NARROW)
    arguments = ["--measure", "2", "--num-images", "100", "--processes", "1", "3"]
    assert tool.main([config, *arguments]) == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    assert rows[1][1] == "measured" and rows[3][1] == "extrapolated"
    assert rows[1][4] == str(800 * 50) and rows[3][4] == str(800 * 17)
    assert "median of 2 steps on random images, fp32" in output
    seconds = float(re.search(r"measured +(\S+) s a step of 2 images", output).group(1))
    assert float(rows[1][0]) == pytest.approx(seconds, rel=1e-3)
    # Activations and the four times counted parameters, and gradients once more with three.
    parts = dict(re.findall(r"(parameters|gradients|activations|state) ([\d.]+) MB", output))
    parts = {name: float(value) for name, value in parts.items()}
    assert parts["state"] == pytest.approx(2 * parts["parameters"], abs=0.1)
    total = sum(parts.values())
    assert float(rows[1][7].split()[0]) == pytest.approx(total, abs=0.2)
    assert float(rows[3][7].split()[0]) == pytest.approx(total + parts["gradients"], abs=0.2)


def test_a_classifier_is_measured_as_well(tool, capsys, tmp_path):
    base = CONFIGS / "convnextv2" / "convnextv2-atto_fcmae-pre_32xb32-coslr-600e_in1k.py"
    config = tmp_path / "classifier.py"
    config.write_text(
        f"_base_ = {str(base)!r}\n"
        f"model = dict(backbone=dict(arch={NARROW[0]}), head=dict(in_channels={NARROW[1]}))\n"
    )
    arguments = ["--measure", "1", "--batch", "2", "--processes", "1"]
    assert tool.main([str(config), *arguments]) == 0
    output = capsys.readouterr().out
    assert "bf16" in output and "averaged weights" in output
    assert rows_of(output)[1][1] == "extrapolated"  # 2 images measured, 32 asked for


def test_a_benchmark(tool, capsys, tmp_path, document):
    config = write_config(tmp_path / "atto.py", "'atto'", 320)
    assert tool.main([config, "--benchmark", str(document), "--processes", "1", "8"]) == 0
    output = capsys.readouterr().out
    (row,) = json.loads(document.read_text())["rows"]
    seconds, activations = row["seconds"]["median"], row["memory"]["activations"]
    rows = rows_of(output)
    # One image measured, two asked for.
    assert float(rows[1][0]) == pytest.approx(2 * seconds, rel=1e-3)
    assert rows[1][1] == rows[8][1] == "extrapolated"
    lasting = 4 * 4 * 7_257_992
    assert float(rows[1][7].split()[0]) == pytest.approx((lasting + 2 * activations) / 1e6, abs=0.1)
    assert "packed, fp32, on " in output and str(document) in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--step-seconds, --measure or --benchmark; got none"),
        ([*STEP, "--measure", "3"], "got --step-seconds and --measure"),
        (["--step-seconds", "1"], "needs --batch"),
        (["--step-seconds", "0", "--batch", "1"], "more than 0 seconds"),
        ([*STEP, "--num-images", "0"], "--num-images must be at least 1, got 0"),
        ([*STEP, "--num-images", "63"], "63 images do not fill one batch of 64"),
        ([*STEP, "--processes", "0"], "processes must be at least 1, got 0"),
        ([*STEP, "--efficiency", "1.5"], "at most 1, got 1.5"),
        (["--measure", "0"], "number of steps must be at least 1, got 0"),
        (["--benchmark", "missing.json"], "missing.json"),
        ([*STEP, "--cfg-options", "train_cfg="], "no train_cfg"),
        ([*STEP, "--cfg-options", "train_cfg.max_iters=5"], "either max_epochs or max_iters"),
        (
            [*STEP, "--cfg-options", "train_dataloader.dataset.dataset.data_root=mine"],
            "--num-images N",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tool, capsys, arguments, words):
    assert tool.main([str(BASE), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("plan_run.py: ") and words in line


def test_a_missing_config_ends_the_program_with_2():
    process = subprocess.run(
        [sys.executable, str(TOOL), "missing.py", *STEP], capture_output=True, text=True, cwd=ROOT
    )
    assert process.returncode == 2 and "recipe" not in process.stdout
    assert "missing.py" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_a_detector_cannot_be_measured_on_random_images(tool, capsys):
    config = CONFIGS / "mask_rcnn" / "mask-rcnn_convnextv2-atto_fpn_8xb4-amp-lsj-3x_coco.py"
    assert tool.main([str(config), "--measure", "1", "--num-images", "100"]) == 2
    assert "MaskRCNN depends on annotations" in capsys.readouterr().err


CHANGES = {
    "architecture": (dict(arch="tiny"), "architecture tiny, not atto"),
    "size": (dict(image_size=224), "image size (224, 224), not (64, 64)"),
    "precision": (dict(dtype="bf16"), "precision bf16, not fp32"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_benchmark_of_another_step_is_refused(tool, capsys, tmp_path, document, what):
    change, words = CHANGES[what]
    content = json.loads(document.read_text())
    content["arguments"].update(change)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    config = write_config(tmp_path / "atto.py", "'atto'", 320)
    assert tool.main([config, "--benchmark", str(other)]) == 2
    assert words in capsys.readouterr().err


def test_a_benchmark_without_the_step_is_refused(tool, capsys, tmp_path, document):
    config = write_config(tmp_path / "atto.py", "'atto'", 320)
    for options, words in (
        (["model.backbone.mask_layout=masked"], "no step 'masked', only ['packed']"),
        (["model.backbone.use_grn=False"], "use_grn True, not False"),
    ):
        arguments = ["--benchmark", str(document), "--cfg-options", *options]
        assert tool.main([config, *arguments]) == 2
        assert words in capsys.readouterr().err
