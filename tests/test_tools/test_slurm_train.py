"""tools/slurm_train.sh with stand-ins for Slurm's programs: submitting, stopping, going on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"

STAND_INS = dict(
    # Keeps the job script and prints its own arguments.
    sbatch='cat > job.sh\nprintf "%s\\n" "$@"',
    # Prints its arguments and ends as it is told.
    srun='printf "%s\\n" "$@"\nexit "${SRUN_CODE:-0}"',
    scontrol='echo "$@" >> scontrol.txt',
    python="exit 9",
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with the stand-ins; the current folder is an empty one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    work = tmp_path / "a folder"
    work.mkdir()
    monkeypatch.chdir(work)
    return dict(PATH=f"{folder}:/usr/bin:/bin", PYTHON=str(folder / "python"))


def call(
    script: Path | str, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def slurm_train(environment: dict[str, str], *arguments: str) -> list[str]:
    """What the program that it calls got as arguments."""
    result = call(TOOLS / "slurm_train.sh", environment, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


RESOURCES = ["--partition=part", "--job-name=a job"]


def test_outside_of_a_job_one_is_submitted_that_is_warned_and_may_be_queued_again(
    cluster: dict[str, str],
) -> None:
    cluster.update(GPUS="16", CPUS_PER_TASK="6", SBATCH_ARGS="--time=9:00 --account=me")
    assert slurm_train(cluster, "part", "a job", "c.py") == [
        *RESOURCES,
        "--gres=gpu:8",
        "--ntasks=16",
        "--ntasks-per-node=8",
        "--cpus-per-task=6",
        "--signal=USR1@120",
        "--requeue",
        "--open-mode=append",
        "--time=9:00",
        "--account=me",
    ]


def test_the_notice_can_be_longer(cluster: dict[str, str]) -> None:
    assert "--signal=USR1@600" in slurm_train(dict(cluster, STOP_SECONDS="600"), "p", "j", "c.py")


def test_the_job_trains_with_what_was_submitted(cluster: dict[str, str]) -> None:
    """Whatever is in the arguments, and from wherever Slurm has put its copy of the script."""
    arguments = ["part", "a job", "my config.py", "my work", "--cfg-options", "a='$x * \"y\"'"]
    slurm_train(cluster, *arguments)
    script = Path("job.sh").rename("copy")
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    job = call(script, dict(cluster, SLURM_JOB_ID="7", GPUS="2", SRUN_ARGS="--qos=x -v"))
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines() == [
        *RESOURCES,
        "--gres=gpu:2",
        "--ntasks=2",
        "--ntasks-per-node=2",
        "--cpus-per-task=5",
        "--kill-on-bad-exit=1",
        "--qos=x",
        "-v",
        cluster["PYTHON"],
        "-u",
        str(TOOLS / "train.py"),
        "my config.py",
        "--launcher",
        "slurm",
        "--work-dir",
        "my work",
        *arguments[4:],
    ]
    assert not Path("scontrol.txt").exists()


@pytest.mark.parametrize("code", [0, 1, 2, 138, 143])
def test_only_the_end_of_its_time_queues_a_job_again(cluster: dict[str, str], code: int) -> None:
    environment = dict(cluster, SLURM_JOB_ID="7", SRUN_CODE=str(code))
    result = call(TOOLS / "slurm_train.sh", environment, "p", "j", "c.py")
    assert result.returncode == code
    requeued = Path("scontrol.txt").read_text() if Path("scontrol.txt").exists() else ""
    assert requeued == ("requeue 7\n" if code == 138 else "")


@pytest.mark.parametrize(
    ("given", "first", "later"),
    [
        ([], [], ["--resume"]),
        (["--amp"], ["--amp"], ["--amp", "--resume"]),
        (["--overwrite", "--amp"], ["--overwrite", "--amp"], ["--amp", "--resume"]),
        (["--resume", "a.pth"], ["--resume", "a.pth"], ["--resume", "a.pth", "--resume"]),
        (["out"], ["--work-dir", "out"], ["--work-dir", "out", "--resume"]),
    ],
)
def test_from_its_second_start_on_a_job_resumes(
    cluster: dict[str, str], given: list[str], first: list[str], later: list[str]
) -> None:
    for restarts, expected in (("", first), ("0", first), ("1", later), ("2", later)):
        environment = dict(cluster, SLURM_JOB_ID="7")
        if restarts:
            environment["SLURM_RESTART_COUNT"] = restarts
        lines = slurm_train(environment, "p", "j", "c.py", *given)
        assert lines[lines.index("slurm") + 1 :] == expected


CONFIG = """
custom_imports = dict(imports=["toy_training", "time_is_up"])
default_scope = "mmengine"
model = dict(type="NumberModel")
train_dataloader = dict(
    dataset=dict(type="StatelessDataset", dataset=dict(type="NumberedVectors", count=16)),
    batch_size=4,
    num_workers=1,
    sampler=dict(type="StatelessSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
)
train_cfg = dict(type="ResumableEpochLoop", max_epochs=2)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9))
default_hooks = dict(checkpoint=dict(type="DurableCheckpointHook", interval=100))
custom_hooks = [
    dict(type="StatelessSeedHook"), dict(type="TimeIsUp"), dict(type="StopOnSignalHook")
]
randomness = dict(seed=0)
"""

HOOK = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class TimeIsUp(Hook):
    # The first start is signalled in its third step, the second in its sixth.
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == {"": 3, "1": 6}.get(os.environ.get("SLURM_RESTART_COUNT", "")):
            os.kill(os.getpid(), signal.SIGUSR1)
"""

# As Slurm's, except that it starts one process, which has no GPU.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "${@/slurm/none}"
"""


@pytest.mark.fault(6, "a Slurm job whose time is up, twice", "queued again, resumed, ends")
@pytest.mark.slow
def test_a_job_is_stopped_twice_and_comes_to_its_end(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """The whole way with the real train.py, and no bit different from a run without stops."""
    (tmp_path / "bin" / "srun").write_text(SRUN)
    Path("time_is_up.py").write_text(HOOK)
    Path("config.py").write_text(CONFIG)
    cluster.update(
        PATH=f"{cluster['PATH']}:{os.environ['PATH']}",
        PYTHON=sys.executable,
        PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}:{Path.cwd()}",
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
    )
    slurm_train(cluster, "part", "toy", "config.py", "stopped")
    codes = []
    for restarts in range(3):
        environment = dict(cluster, SLURM_JOB_ID="7")
        if restarts:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        job = call("job.sh", environment)
        codes.append(job.returncode)
        # Slurm starts a job again only if it is told to.
        told = Path("scontrol.txt").read_text() if Path("scontrol.txt").exists() else ""
        assert told == "requeue 7\n" * min(restarts + 1, 2), job.stdout + job.stderr
    assert codes == [138, 138, 0]

    environment = dict(cluster, SLURM_RESTART_COUNT="none")
    command = [sys.executable, str(TOOLS / "train.py"), "config.py", "--work-dir", "whole"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    first, second = (
        torch.load(f"{name}/epoch_2.pth", weights_only=True) for name in ("whole", "stopped")
    )
    for name, value in first["state_dict"].items():
        assert torch.equal(second["state_dict"][name], value), name
