"""What tools/train.py and tools/test.py share: arguments, config, work directory, processes."""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

_WORLD_SIZE_VARIABLE = {
    "pytorch": "WORLD_SIZE",
    "slurm": "SLURM_NTASKS",
    "mpi": "OMPI_COMM_WORLD_SIZE",
}


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that OpenMMLab's training and test scripts have in common."""
    parser.add_argument(
        "--work-dir", metavar="DIR", help="where logs and results go (work_dirs/<config name>)"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="settings to change in the config, e.g. train_dataloader.batch_size=32",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", *_WORLD_SIZE_VARIABLE],
        default="none",
        help="what started the processes (none: a single one)",
    )
    # torch.distributed.launch passes the rank as an argument, torchrun in the environment.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the command line names, with its options and its work directory.

    Args:
        args: parsed arguments with ``config`` and those of `add_launch_arguments`.

    Raises:
        FileNotFoundError: if the config is not a file.
    """
    if not Path(args.config).is_file():
        raise FileNotFoundError(
            f"config {args.config!r} is not a file (looked from {Path.cwd()}): name one of configs/"
        )
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    if args.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return cfg


def world_size(launcher: str) -> int:
    """Number of processes that the launcher started, from its environment variable; 1 without one.

    Raises:
        ValueError: if the variable is not set, as when the script was started by hand.
    """
    if launcher == "none":
        return 1
    variable = _WORLD_SIZE_VARIABLE[launcher]
    if variable not in os.environ:
        raise ValueError(
            f"--launcher {launcher} needs {variable} in the environment, which the launcher sets: "
            "start with tools/dist_*.sh or tools/slurm_*.sh, or leave --launcher out"
        )
    return int(os.environ[variable])


def join_processes(cfg: Config, launcher: str) -> list[str]:
    """Prepare a config for the processes of a launcher, in place.

    With a GPU this sets ``launcher`` and leaves the rest to the Runner. Without one the Runner
    would still reach for CUDA, so the process group is joined here, on gloo, and the model is
    wrapped without device numbers.

    Args:
        cfg: config of the coming Runner.
        launcher: "none", "pytorch", "slurm" or "mpi".

    Returns:
        Lines for the log.

    Raises:
        ValueError: if slurm or mpi started processes on a machine without a GPU, or the launcher's
            environment variables are missing.
    """
    cfg.launcher = launcher
    processes = world_size(launcher)
    if launcher == "none" or torch.cuda.is_available():
        return []
    if launcher != "pytorch":
        raise ValueError(
            f"--launcher {launcher} needs a GPU and this machine has none: ask for one, or train "
            "on the CPU with tools/dist_train.sh"
        )
    env_cfg = cfg.get("env_cfg") or {}
    dist_cfg = dict(env_cfg.get("dist_cfg") or {}, backend="gloo")
    cfg.env_cfg = dict(env_cfg, dist_cfg=dist_cfg)
    wrapper = cfg.get("model_wrapper_cfg") or dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    timeout = dist_cfg.get("timeout")
    torch.distributed.init_process_group(
        "gloo", timeout=None if timeout is None else timedelta(seconds=timeout)
    )
    return [f"no GPU: {processes} processes on the CPU, backend gloo"]


def build_runner(cfg: Config, notes: list[str]) -> Runner:
    """Build the Runner that a config asks for, and log what was decided on the way to it.

    Args:
        cfg: a complete config; ``runner_type`` names another class than mmengine's Runner.
        notes: lines for the run's log.
    """
    runner_class = RUNNERS.get(cfg.runner_type) if "runner_type" in cfg else Runner
    runner = runner_class.from_cfg(cfg)
    for note in notes:
        runner.logger.info(note)
    return runner
