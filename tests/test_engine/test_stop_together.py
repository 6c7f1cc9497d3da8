"""Two processes on the CPU under torchrun: what one of them meets stops both, at the same step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TESTS = Path(__file__).resolve().parents[1]

BEGINNING = """
import json, os, signal
from pathlib import Path
from mmengine.hooks import Hook
from torch import distributed
from toy_training import Trace, copy_state, make_runner
from mmconvnextv2.engine.hooks import FiniteHook, NonFiniteError, StopOnSignalHook

rank = int(os.environ["RANK"])
distributed.init_process_group("gloo")

class Send(Hook):
    def __init__(self, step, number, to):
        self.step, self.number, self.to = step, number, to

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step:
            os.kill(self.to, self.number)

def together(name, *hooks, **changes):
    wrapper = dict(
        type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False
    )
    cfg = dict(model_wrapper_cfg=wrapper)
    return make_runner(Path(name), *hooks, launcher="pytorch", cfg=cfg, **changes)

def report(name, **content):
    Path(f"{name}{rank}.json").write_text(json.dumps(content))

def total(runner):
    return sum(p.double().sum().item() for p in runner.model.parameters())
"""

WITHIN = """
for kind in ("output", "gradient"):
    runner = together(
        kind, FiniteHook(), bad=[9], model=dict(kind=kind), shuffle=False, epochs=1
    )
    try:
        runner.train()
    except NonFiniteError as error:
        report(kind, message=str(error), step=runner.iter + 1, total=total(runner))

runner = together("skip", FiniteHook(max_skips=1), bad=[9], shuffle=False, epochs=1)
runner.train()
report("skip", step=runner.iter, total=total(runner))

hooks = [Send(3, signal.SIGUSR1, os.getpid())] if rank == 1 else []
runner = together("signal", *hooks, StopOnSignalHook())
try:
    runner.train()
except SystemExit as left:
    report("signal", code=left.code, step=runner.iter + 1, total=total(runner))
distributed.destroy_process_group()
"""

FROM_ABOVE = """
# torchrun signals whole sessions, loader processes included.
hooks = [Send(3, signal.SIGTERM, os.getppid())] if rank == 1 else []
runner = together("run", *hooks, StopOnSignalHook(), workers=1, epochs=100_000)
try:
    runner.train()
except SystemExit as left:
    report("run", code=left.code, step=runner.iter + 1, total=total(runner))
    raise
"""


def launch(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(BEGINNING + script)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    return subprocess.run(
        [sys.executable, *torchrun, "script.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def reports(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}{rank}.json").read_text()) for rank in (0, 1)]


def test_what_one_process_meets_stops_both(tmp_path: Path) -> None:
    run = launch(tmp_path, WITHIN)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    for kind in ("output", "gradient"):
        first, second = reports(tmp_path, kind)
        assert first == second, "the same message, step and weights"
        assert first["step"] == 2, "8 images a step; image 9 is rank 1's first in the second"
        assert "on rank 1" in first["message"]
        ranks = json.loads((tmp_path / kind / "nonfinite" / "iter_2.json").read_text())["ranks"]
        assert ranks[0]["origin"] is None and ranks[1]["origin"] is not None
        assert ranks[1]["images"] == ["9.png", "11.png", "13.png", "15.png"]
        states = torch.load(tmp_path / kind / "nonfinite" / "iter_2.pt", weights_only=True)
        assert not torch.equal(states[0]["torch"], states[1]["torch"])
    first, second = reports(tmp_path, "skip")
    assert first == second and first["step"] == 2
    first, second = reports(tmp_path, "signal")
    assert first == second
    assert (first["code"], first["step"]) == (138, 3)
    assert (tmp_path / "signal" / "iter_3.pth").is_file()


def test_torchrun_hands_sigterm_to_both_and_their_loaders(tmp_path: Path) -> None:
    run = launch(tmp_path, FROM_ABOVE)
    assert run.returncode != 0, "torchrun's own code"
    first, second = reports(tmp_path, "run")
    assert first == second and first["code"] == 143, run.stderr[-4000:]
    step = first["step"]
    saved = torch.load(tmp_path / "run" / f"iter_{step}.pth", weights_only=True)
    assert saved["meta"]["iter"] == step >= 3
    assert "killed by signal" not in run.stderr
