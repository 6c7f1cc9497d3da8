"""All that a run logged, read from files written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmconvnextv2.visualization.curves import read_run_scalars

pytestmark = pytest.mark.unit


def write_start(folder: Path, time: str, *records: dict) -> None:
    path = folder / time / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def train(step: int, loss: float, **more: float) -> dict:
    return {"loss": loss, "time": 0.5, "iter": step, "step": step, **more}


def test_training_and_validation_are_kept_apart(tmp_path) -> None:
    write_start(
        tmp_path,
        "20260101_000000",
        train(10, 1.0, epoch=1),
        {"accuracy/top1": 40.0, "time": 9.0, "step": 1},
        train(20, 0.5, epoch=2, grad_norm=3.0),
        {"accuracy/top1": 60.0, "time": 9.0, "step": 2},
    )
    scalars = read_run_scalars(tmp_path)
    assert scalars.by_epoch
    assert dict(scalars.train) == {
        "loss": ([10, 20], [1.0, 0.5]),
        "time": ([10, 20], [0.5, 0.5]),
        "grad_norm": ([20], [3.0]),
    }
    assert scalars.val["accuracy/top1"] == ([1, 2], [40.0, 60.0])


def test_a_resumed_run_goes_on_and_one_that_replaces_it_starts_anew(tmp_path) -> None:
    write_start(tmp_path, "20260101_000000", *(train(s, 1.0) for s in (10, 20, 30)))
    write_start(
        tmp_path, "20260102_000000", train(30, 0.5), train(40, 0.4), {"mIoU": 5.0, "step": 40}
    )
    resumed = read_run_scalars(tmp_path)
    assert not resumed.by_epoch
    assert resumed.train["loss"] == ([10, 20, 30, 40], [1.0, 1.0, 0.5, 0.4])
    write_start(tmp_path, "20260103_000000", train(10, 7.0))
    replaced = read_run_scalars(tmp_path)
    assert replaced.train["loss"] == ([10], [7.0]) and not replaced.val


def test_what_is_no_number_is_left_out(tmp_path) -> None:
    write_start(tmp_path, "20260101_000000", train(1, float("nan"), note="text"), {"hello": 1})
    assert set(read_run_scalars(tmp_path).train) == {"loss", "time"}
