"""Two processes on the CPU: tools/dist_train.sh trains, saves and resumes; the ranks agree."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
# Each rank writes a digest of its weights after training, so that the test can compare them.
CONFIG = """
_base_ = {base!r}
custom_imports = dict(
    imports=[*_base_.custom_imports.imports, "rank_digest"], allow_failed_imports=False
)
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), channels=(8, 8, 8, 8))),
    neck=dict(in_channels=8, num_channels=16),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(dataset=dict(data_root={data!r})),
)
default_hooks = dict(checkpoint=dict(interval=1))
custom_hooks = [*_base_.custom_hooks, dict(type="RankDigestHook")]
"""
HOOK = '''
"""A hook for the test: each rank writes what it ends with."""
import json
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RankDigestHook(Hook):
    def after_train(self, runner):
        weights = {k: v.double().sum().item() for k, v in runner.model.state_dict().items()}
        digest = dict(
            weights=weights,
            unused=runner.model.find_unused_parameters,
            wrapper=type(runner.model).__name__,
            iterations=runner.iter,
        )
        with open(f"{runner.work_dir}/rank{runner.rank}.json", "w") as file:
            json.dump(digest, file)
'''


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(8):
        pixels = random.integers(0, 256, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    base = ROOT / "configs" / "fcmae" / "fcmae_convnextv2-atto_1xb32-coslr-12e_sample.py"
    text = CONFIG.format(base=str(base), data=str(tmp_path / "images"))
    (tmp_path / "config.py").write_text(text)
    (tmp_path / "rank_digest.py").write_text(HOOK)
    return tmp_path / "config.py"


def launch(config: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{config.parent}:{ROOT}",
        "PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        ["bash", ROOT / "tools" / "dist_train.sh", config, "2", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=config.parent,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout + run.stderr


def test_two_ranks_train_save_and_resume(config: Path) -> None:
    work_dir = config.parent / "out"
    short = ["--cfg-options", "train_cfg.max_epochs=2"]
    launch(config, "--work-dir", str(work_dir), *short)
    ranks = [json.loads((work_dir / f"rank{i}.json").read_text()) for i in (0, 1)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["unused"] is False
    assert "Distributed" in ranks[0]["wrapper"]
    assert ranks[0]["iterations"] == 4, "8 images, 2 ranks, 2 a batch, 2 epochs"
    assert (work_dir / "epoch_2.pth").is_file()

    longer = ["--cfg-options", "train_cfg.max_epochs=3", "--resume"]
    launch(config, "--work-dir", str(work_dir), *longer)
    resumed = [json.loads((work_dir / f"rank{i}.json").read_text()) for i in (0, 1)]
    assert resumed[0] == resumed[1]
    assert resumed[0]["iterations"] == 6
    saved = torch.load(work_dir / "epoch_3.pth", weights_only=True)["state_dict"]
    first = torch.load(work_dir / "epoch_2.pth", weights_only=True)["state_dict"]
    assert not torch.equal(saved["neck.prediction.weight"], first["neck.prediction.weight"])
