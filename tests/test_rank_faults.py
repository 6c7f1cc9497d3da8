"""Two processes on the CPU that share the optimizer's state, and one of them that dies.

Every run is compared with one to which nothing happened.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from free_port import free_port
from mmengine.config import Config
from narrowing import narrow_fcmae, write_pictures
from torch import Tensor

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "fcmae" / "fcmae_convnextv2-huge_64xb64-cp-zero-coslr-1600e_in1k.py"
PICTURES, EPOCHS, STEPS = 8, 2, 4
"""Two processes with batches of two take two steps an epoch."""

BOUND_S = 240
"""No run may take longer; one that waits for a dead process would take half an hour."""


def narrow_config(images: Path) -> Config:
    """The recipe of Huge with shares, on a few pictures, for two epochs."""
    config = narrow_fcmae(Config.fromfile(CONFIG), images)
    dataset = config.train_dataloader.dataset.dataset
    dataset.split = None
    dataset.pipeline[0].scale = 64
    config.train_cfg.max_epochs = EPOCHS
    warmup, cosine = config.param_scheduler
    warmup.end = cosine.begin = 1
    config.default_hooks.checkpoint.interval = 1
    assert config.optim_wrapper.optimizer.type == "ShardedOptimizer"
    assert config.model.backbone.with_cp
    return config


def torchrun(
    config: Config, path: Path, *arguments: str, restarts: int = 0, tail: str = ""
) -> subprocess.CompletedProcess[str]:
    """Train in two processes; `tail` is more text of the config's file."""
    config.custom_imports.imports = [*config.custom_imports.imports, "rank_report", "rank_faults"]
    config.custom_hooks = [*config.custom_hooks, dict(type="RankReportHook")]
    path.write_text(f"{config.pretty_text}\n{tail}\n")
    return subprocess.run(
        ["bash", str(ROOT / "tools" / "dist_train.sh"), str(path), "2", *arguments],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        cwd=path.parent,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}",
            "PORT": str(free_port()),
            "MAX_RESTARTS": str(restarts),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )


def said(run: subprocess.CompletedProcess[str]) -> str:
    return run.stdout[-6000:] + run.stderr[-6000:]


def read(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)


def tensors(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Weights and the optimizer's state, by name."""
    state = checkpoint["optimizer"]["state"]
    entries = {f"{i}.{name}": value for i in state for name, value in state[i].items()}
    return checkpoint["state_dict"] | entries


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("rank_faults") / "images", PICTURES, (70, 70))


@pytest.fixture(scope="module")
def whole(images: Path) -> Path:
    """A run to which nothing happened. Each process has a work directory of its own."""
    folder = images.parent / "whole"
    folder.mkdir()
    tail = f"work_dir = {str(folder)!r} + '/rank' + __import__('os').environ['RANK']"
    run = torchrun(narrow_config(images), images.parent / "whole.py", tail=tail)
    assert run.returncode == 0, said(run)
    return folder


@pytest.mark.fault(9, "two processes, nothing happens", "equal weights; only the first writes")
def test_weights_are_equal_and_only_the_first_process_writes(whole: Path) -> None:
    written = {
        rank: {path.name for path in (whole / rank).rglob("*") if path.is_file()}
        for rank in ("rank0", "rank1")
    }
    assert written["rank1"] == {"rank1.json"}, "this report is the test's own"
    assert {"rank0.json", "epoch_1.pth", "epoch_2.pth"} <= written["rank0"]
    first, second = (json.loads((whole / f"rank{i}" / f"rank{i}.json").read_text()) for i in (0, 1))
    assert first["wrapper"] == "MMDistributedDataParallel"
    for key in ("before", "after", "iterations"):
        assert first[key] == second[key], key
    assert first["iterations"] == STEPS
    assert first["before"] != first["after"]


@pytest.mark.fault(10, "resumed from shares with a plain AdamW", "weights and state are bit-equal")
def test_a_plain_optimizer_goes_on_where_shares_left_off(images: Path, whole: Path) -> None:
    """It does in the second epoch what the shares did, so their arithmetic is its arithmetic."""
    config = narrow_config(images)
    config.optim_wrapper.optimizer.pop("optimizer_type")
    config.optim_wrapper.optimizer.type = "AdamW"
    half = whole / "rank0" / "epoch_1.pth"
    work_dir = images.parent / "plain"
    arguments = ("--work-dir", str(work_dir), "--resume", str(half))
    run = torchrun(config, images.parent / "plain.py", *arguments)
    assert run.returncode == 0, said(run)
    end, expected = read(work_dir / "epoch_2.pth"), read(whole / "rank0" / "epoch_2.pth")
    assert_equal(tensors(end), tensors(expected))
    assert not torch.equal(
        end["state_dict"]["neck.mask_token"], read(half)["state_dict"]["neck.mask_token"]
    )
    rates = [[group["lr"] for group in run["optimizer"]["param_groups"]] for run in (end, expected)]
    assert rates[0] == rates[1]


@pytest.mark.fault(10, "the plain checkpoint of a run with shares is published", "it holds all")
def test_publishing(whole: Path, tmp_path: Path) -> None:
    checkpoint = whole / "rank0" / "epoch_2.pth"
    tool = ROOT / "tools" / "model_converters" / "publish_model.py"
    subprocess.run(
        [sys.executable, tool, checkpoint, tmp_path / "out.pth", "--license", "Apache-2.0"],
        check=True,
        capture_output=True,
    )
    (published,) = tmp_path.glob("out-*.pth")
    assert_equal(read(published)["state_dict"], read(checkpoint)["state_dict"])


@pytest.mark.fault(9, "one of two processes is killed", "the job ends and names it; files intact")
def test_a_dead_process_ends_the_job_and_is_named(images: Path, whole: Path) -> None:
    config = narrow_config(images)
    config.custom_hooks.append(dict(type="RankFaultHook", rank=1, iteration=3))
    work_dir = images.parent / "dead"
    run = torchrun(config, images.parent / "dead.py", "--work-dir", str(work_dir))
    assert run.returncode != 0
    assert re.search(r"rank\s*: 1 \(local_rank: 1\)\s+exitcode\s*: -9 ", run.stderr), said(run)
    assert_equal(
        tensors(read(work_dir / "epoch_1.pth")), tensors(read(whole / "rank0" / "epoch_1.pth"))
    )
    assert not list(work_dir.rglob("epoch_2.pth"))


EVERY_DEATH = [(rank, iteration) for rank in (0, 1) for iteration in range(STEPS)]


@pytest.mark.fault(9, "one of two processes is killed, MAX_RESTARTS=1", "bit-equal end")
def test_torchrun_brings_the_job_back(
    images: Path, whole: Path, soak_count: Callable[[int, int], int]
) -> None:
    """Also before there is a checkpoint, when `--resume` finds nothing and begins."""
    for rank, iteration in EVERY_DEATH[-soak_count(1, len(EVERY_DEATH)) :]:
        config = narrow_config(images)
        config.custom_hooks.append(dict(type="RankFaultHook", rank=rank, iteration=iteration))
        work_dir = images.parent / f"restart_{rank}_{iteration}"
        arguments = ("--work-dir", str(work_dir), "--resume")
        run = torchrun(config, work_dir.with_suffix(".py"), *arguments, restarts=1)
        assert run.returncode == 0, said(run)
        assert re.search(rf"exitcode: -9\) local_rank: {rank} ", run.stderr), said(run)
        reports = [json.loads((work_dir / f"rank{i}.json").read_text()) for i in (0, 1)]
        assert reports[0]["after"] == reports[1]["after"]
        assert len(reports[0]["seen"]) == STEPS - (iteration // 2 * 2), "from the last checkpoint"
        assert_equal(
            tensors(read(work_dir / "epoch_2.pth")), tensors(read(whole / "rank0" / "epoch_2.pth"))
        )


@pytest.mark.soak
@pytest.mark.fault(9, "one of two processes hangs for ever", "the job ends at the group's timeout")
def test_a_hanging_process_ends_the_job(images: Path) -> None:
    config = narrow_config(images)
    config.env_cfg.dist_cfg.timeout = 20
    fault = dict(type="RankFaultHook", rank=1, iteration=3, signal_name="SIGSTOP")
    config.custom_hooks.append(fault)
    work_dir = images.parent / "hanging"
    run = torchrun(config, images.parent / "hanging.py", "--work-dir", str(work_dir))
    assert run.returncode != 0
    assert "Timed out waiting 20000ms" in run.stderr, said(run)
    read(work_dir / "epoch_1.pth")
