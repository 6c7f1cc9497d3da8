"""Smoke runs of every benchmark from the command line, also where there is torch alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmconvnextv2.benchmark.__main__ import main
from mmconvnextv2.nn import MASK_LAYOUTS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SMALL = "--arch atto --batch 1 --image-size 64 --repeat 1 --warmup 0 --min-seconds 0".split()

# What torch itself loads is allowed; of the rest, only the standard library and this package.
TORCH_ALONE = """
import sys
import torch, torch.utils.checkpoint

torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
allowed = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
allowed |= {"torch", "mmconvnextv2"}
assert not allowed & {"mmengine", "mmcv", "mmpretrain", "timm", "transformers", "rich", "PIL"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])


sys.meta_path.insert(0, Refuse())
from mmconvnextv2.benchmark.__main__ import main

for arguments in sys.argv[1:]:
    assert main(arguments.split()) == 0
"""


def run_main(tmp_path: Path, *arguments: str) -> dict:
    """Run a benchmark in this process and read what it wrote."""
    path = tmp_path / "result.json"
    assert main([*arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def names(result: dict, group: str) -> set[str]:
    return {row["name"] for row in result["rows"] if row["group"] == group}


def test_pretrain_step(tmp_path):
    only = ["packed*", "masked", "minkowski", "triton", "timm, dense"]
    result = run_main(tmp_path, "pretrain_step", *SMALL, "--only", *only)
    for group in ("encoder", "step"):
        left_out = {e["name"] for e in result["left_out"] if e["group"] == group}
        assert {"packed", "masked"} <= names(result, group)
        assert names(result, group) | left_out >= set(MASK_LAYOUTS)
    by_name = {row["name"]: row for row in result["rows"] if row["group"] == "encoder"}
    # One of four cells is visible.
    assert by_name["packed"]["flops"] < 0.5 * by_name["masked"]["flops"]
    unmasked = by_name["packed, nothing removed"]["flops"]
    assert unmasked == pytest.approx(by_name["masked"]["flops"], rel=0.05)
    if "timm, dense" in by_name:
        assert by_name["timm, dense"]["flops"] == by_name["masked"]["flops"]
    step = next(row for row in result["rows"] if row["name"] == "packed" and row["group"] == "step")
    # Two moments and a counter a parameter.
    assert step["memory"]["optimizer"] == pytest.approx(2 * step["memory"]["parameters"], rel=0.01)
    assert result["arguments"]["batch"] == 1
    assert result["environment"]["torch"]


def test_the_steps_of_mmpretrain(tmp_path):
    """MAE of ViT-B/16 is as large as its paper says: 86 M in the encoder, 26 M in the decoder."""
    pytest.importorskip("mmpretrain", reason="mmpretrain is the peer")
    only = ["packed", "MAE*mmpretrain*", "SparK*"]
    result = run_main(tmp_path, "pretrain_step", *SMALL, "--only", *(f"step/{o}" for o in only))
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {"packed", "MAE ViT-B/16 (mmpretrain)", "SparK (mmpretrain)"}
    mae = rows["MAE ViT-B/16 (mmpretrain)"]
    assert mae["memory"]["parameters"] / 4e6 == pytest.approx(111.7, abs=0.5)
    assert rows["packed"]["baseline"] == mae["name"]


def test_dense(tmp_path):
    only = ["ConvNeXtV2", "timm, dense", "mmpretrain, dense, channels last"]
    sizes = ["64x64", "64x128"]
    result = run_main(tmp_path, "dense", *SMALL, "--sizes", *sizes, "--only", *only)
    groups = {f"{what}, 1 x {size}" for size in sizes for what in ("forward", "forward + backward")}
    assert {row["group"] for row in result["rows"]} == groups
    for group in groups:
        found = names(result, group)
        absent = {e["name"]: e["reason"] for e in result["left_out"] if e["group"] == group}
        assert found | set(absent) == set(only)
        assert "ConvNeXtV2" in found
        assert all("not installed" in reason for reason in absent.values())


def test_dataload(tmp_path):
    pytest.importorskip("mmpretrain", reason="its pipeline is what ours is compared with")
    result = run_main(tmp_path, "dataload", "--count", "3", *SMALL)
    assert result["left_out"] == []
    rates = {row["name"]: row["images_per_second"] for row in result["rows"]}
    assert {"ours", "mmpretrain's default"} <= set(rates)
    assert all(row["images"] == 3 for row in result["rows"])


def test_dataload_reads_a_folder(tmp_path, capsys):
    assert main(["dataload", "--images", str(tmp_path)]) == 1
    assert "holds no JPEG files" in capsys.readouterr().err


def test_scaling(tmp_path):
    points = "--sizes 64 96 --batches 1 2 --archs atto --shares 1 0.5".split()
    only = ["--only", "packed", "masked"]
    result = run_main(tmp_path, "scaling", *SMALL, *points, *only)
    points = [row["point"] for row in result["rows"] if row["group"] != "processes"]
    found = {(point["sweep"], point["value"]) for point in points}
    assert found == {
        ("visible share", 1.0),
        ("visible share", 0.5),
        ("image size", 64),
        ("image size", 96),
        ("batch", 1),
        ("batch", 2),
        ("architecture", "atto"),
    }
    images = {row["name"]: row["images"] for row in result["rows"] if row["group"] == "processes"}
    assert images == {"1 process": 1, "2 processes": 2}


def test_everything_runs_with_torch_alone(tmp_path):
    small = " ".join(SMALL)
    runs = [
        f"pretrain_step {small} --json pretrain_step.json",
        f"dense {small} --sizes 64x64 --json dense.json",
        f"dataload {small} --json dataload.json",
        f"scaling {small} --sweep share --shares 1 --only packed masked --json scaling.json",
    ]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TORCH_ALONE, *runs],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    step, dense, dataload = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("pretrain_step", "dense", "dataload")
    )
    assert names(step, "step") == {"masked", "packed"}
    reasons = {entry["name"]: entry["reason"] for entry in step["left_out"]}
    for name, package in {
        "minkowski": "MinkowskiEngine",
        "timm, dense": "timm is not installed",
        "transformers, dense": "transformers is not installed",
        "mmpretrain, dense, channels last": "mmpretrain is not installed",
        "MAE ViT-B/16 (mmpretrain)": "mmpretrain is not installed",
        "MAE ViT-B/16 (transformers)": "transformers is not installed",
        "SparK (mmpretrain)": "mmpretrain is not installed",
    }.items():
        assert package in reasons[name]
        # The table in the terminal says the same.
        assert f"left out: {name}: " in result.stdout
    assert names(dense, "forward, 1 x 64x64") == {"ConvNeXtV2"}
    assert dataload["rows"] == [] and dataload["left_out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "gigantic"], "--arch: invalid choice: 'gigantic'"),
        (["--dtype", "fp8"], "--dtype: invalid choice: 'fp8'"),
        (["--device", "tpu9"], "--device: must be cpu, cuda or cuda:N, got 'tpu9'"),
        (["--device", "meta"], "--device: must be cpu, cuda or cuda:N, got 'meta'"),
        (["--device", "cuda:99"], "CUDA devices here, got 'cuda:99'"),
        (["--image-size", "100"], "--image-size: must be a multiple of 32, got 100"),
        (["--repeat", "0"], "--repeat: must be at least 1, got 0"),
        (["--batch", "many"], "--batch: must be an integer, got 'many'"),
        (["--min-seconds", "nan"], "--min-seconds: must be a number of seconds, got 'nan'"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain_step", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error:") == 1


@pytest.mark.parametrize("size", ["224", "16x64", "axb", "64x64x64"])
def test_wrong_sizes(size, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["dense", "--sizes", size])
    assert stopped.value.code == 2
    assert f"got {size!r}" in capsys.readouterr().err


def test_a_mask_that_leaves_nothing_is_one_error(capsys):
    """At 32 pixels there is one cell, and 60 % of it cannot be removed."""
    assert main(["pretrain_step", *SMALL, "--image-size", "32"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "leaves nothing visible" in error
