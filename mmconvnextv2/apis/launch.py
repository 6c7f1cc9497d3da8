"""What starts a run, from a command line or a call: arguments, config, processes, Runner."""

from __future__ import annotations

import argparse
import copy
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmconvnextv2.apis.cfg_options import CfgOptions, apply_options
from mmconvnextv2.apis.run_folder import RemoveObsoleteHook, Resume, WorkDirError, choose_start
from mmconvnextv2.apis.software import software_line
from mmconvnextv2.checkpoint import StateDictMismatch, read_checkpoint
from mmconvnextv2.checkpoint.validity import CheckpointError, newest_valid_checkpoint
from mmconvnextv2.datasets.annotation_checks import blame_annotations
from mmconvnextv2.datasets.annotation_checks_coco import AnnotationError
from mmconvnextv2.datasets.image_folder import BadImagesError
from mmconvnextv2.datasets.image_scan import TooFewImagesError
from mmconvnextv2.datasets.shard_index import ShardError
from mmconvnextv2.engine.hooks import (
    ConsolidateOptimizerHook,
    DurableCheckpointHook,
    PortableCheckpointHook,
    StrictLoadingHook,
)
from mmconvnextv2.engine.hooks.durable_checkpoint import CheckpointNotWrittenError
from mmconvnextv2.files import write_atomically

T = TypeVar("T")

REQUIRED_HOOKS: tuple[type[Hook], ...] = (
    ConsolidateOptimizerHook,
    PortableCheckpointHook,
    StrictLoadingHook,
)
"""What every run has, whatever its config says."""

USER_ERRORS = (
    FileNotFoundError,
    NotADirectoryError,
    AnnotationError,
    BadImagesError,
    CheckpointError,
    CheckpointNotWrittenError,
    ShardError,
    TooFewImagesError,
    StateDictMismatch,
    WorkDirError,
)
"""What a command line reports in one line; anything else is a fault and keeps its traceback."""

_SETTINGS = {
    "default_scope",
    "experiment_name",
    "find_unused_parameters",
    "launcher",
    "load_from",
    "log_level",
    "resume",
    "runner_type",
    "work_dir",
}
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
        action=CfgOptions,
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


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where training starts; they are arguments of `train`."""
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="go on from a checkpoint; without a path, from the newest valid one in the work "
        "directory, or from the beginning if there is none yet",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run in the work directory; with --resume CHECKPOINT, what is ahead of it",
    )


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the command line names, with its options and its work directory.

    Args:
        args: parsed arguments with ``config`` and those of `add_launch_arguments`.

    Raises:
        FileNotFoundError: if the config is not a file.
        ValueError: if an option names a knob, which is used up when the config has been read.
    """
    if not Path(args.config).is_file():
        raise FileNotFoundError(
            f"config {args.config!r} is not a file (looked from {Path.cwd()}): name one of configs/"
        )
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        _refuse_knobs(cfg, args.cfg_options)
        apply_options(cfg, args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    if args.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return cfg


def _refuse_knobs(cfg: Config, options: dict[str, Any]) -> None:
    for name in options:
        known = cfg.get(name)
        if name in _SETTINGS or "." in name or known is None or isinstance(known, dict | list):
            continue
        places = [key for key in _leaves(cfg.to_dict()) if key.endswith(f".{name}")]
        hint = f"set {' or '.join(places)}" if places else "set the key that is built from it"
        raise ValueError(
            f"--cfg-options {name}: this is a knob of the config file, already used when options "
            f"are applied; {hint} instead, or copy the config and change the knob there"
        )


def _leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all values in nested dictionaries."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix


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


def leave_processes() -> None:
    """Leave the process group, if this process is in one, when its work is done.

    Threads of a group that is still there when the interpreter ends abort the process now and
    then, so that a run that has succeeded is reported as failed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def build_runner(cfg: Config, notes: Sequence[str] = ()) -> Runner:
    """Build the Runner that a config asks for, and log what was decided on the way to it.

    Every run of this project, whatever its task, writes checkpoints that outlive a crash and load
    safely anywhere, and loads whole models strictly: the hooks for it are added where a config
    lacks them. A checkpoint to load is first read in the safe way, which mmengine's own loading is
    not everywhere; one to resume has been checked by `train`.

    Args:
        cfg: a complete config; ``runner_type`` names another class than mmengine's Runner.
        notes: lines for the run's log.

    Raises:
        FileNotFoundError: the checkpoint to load is not there.
        ValueError: it is not a checkpoint of tensors and plain containers.
    """
    notes = [*notes, *_add_hooks(cfg)]
    if cfg.get("load_from") is not None and not cfg.get("resume"):
        read_checkpoint(cfg.load_from)
    runner_class = RUNNERS.get(cfg.runner_type) if "runner_type" in cfg else Runner
    runner = runner_class.from_cfg(cfg)
    for note in (software_line(), *notes):
        runner.logger.info(note)
    return runner


def train(
    cfg: Config, notes: Sequence[str] = (), *, resume: Resume = False, overwrite: bool = False
) -> Runner:
    """Build the Runner and train.

    Args:
        cfg: a complete config. It is not changed; its ``resume`` and ``load_from`` mean what they
            mean to mmengine.
        notes: lines for the run's log.
        resume: True goes on from the newest valid checkpoint of the work_dir and starts as the
            config says where there is none; a path names the checkpoint to go on from.
        overwrite: a fresh start may replace a run in the work_dir; a start from a named checkpoint
            those that lie ahead of it. They are deleted when the new run has begun.

    Returns:
        The Runner after training.

    Raises:
        FileNotFoundError: images or the checkpoint to load are not there.
        CheckpointError: there are checkpoints to resume, and none is valid.
        CheckpointNotWrittenError: the disk is full or nearly so, or cannot be written to.
        TooFewImagesError: there is no image, or they do not fill one batch.
        StateDictMismatch: the checkpoint to load is another model's.
        BadImagesError: too many images cannot be read.
        ShardError: shards are missing or have changed.
        WorkDirError: the work_dir holds a run, and neither `resume` nor `overwrite` is given.
        ValueError: annotations do not fit the images, the classes or the model.
    """
    asked, cfg = cfg, copy.deepcopy(cfg)
    if cfg.get("resume") and resume is False:
        resume = cfg.get("load_from") or True
    start = _agreed(lambda: choose_start(cfg.work_dir, resume, overwrite))
    cfg.resume = start.checkpoint is not None
    if start.checkpoint is not None:
        cfg.load_from = str(start.checkpoint)
    runner = build_runner(cfg, [*notes, *start.notes])
    if len(set(all_gather_object(start.checkpoint))) > 1:
        raise WorkDirError(
            f"the processes do not find the same checkpoints in {cfg.work_dir}: it has to be one "
            "folder that all machines share"
        )
    if start.checkpoint is not None and asked.filename is not None and is_main_process():
        # The Runner has left one that starts from this checkpoint, whatever becomes of the file.
        name = Path(asked.filename).name
        write_atomically(Path(cfg.work_dir) / name, asked.pretty_text.encode())
    check_space(runner)
    if start.obsolete:
        runner.register_hook(RemoveObsoleteHook(start.obsolete))
    with blame_annotations(cfg.get("train_dataloader"), cfg.get("val_dataloader")):
        loader = runner.train_loop.dataloader
        _ = runner.val_loop  # reading it builds the loader and the metric
    if len(loader) == 0:
        raise TooFewImagesError(
            f"{len(loader.dataset)} images do not fill one batch of {loader.batch_size} in each of "
            f"{runner.world_size} processes: lower train_dataloader.batch_size (--batch-size)"
        )
    runner.train()
    return runner


def check_space(runner: Runner) -> None:
    """Refuse to train where the disk has no space for a checkpoint.

    Weights, and two values for each as AdamW keeps them, have to fit.

    Raises:
        CheckpointNotWrittenError: there is less space in the work_dir.
    """
    if not any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
        return
    needed = 3 * sum(p.numel() * p.element_size() for p in runner.model.parameters())
    free = shutil.disk_usage(runner.work_dir).free
    if free < needed:
        raise CheckpointNotWrittenError(
            errno.ENOSPC,
            f"a checkpoint needs about {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: "
            "make space, or choose a folder on another disk",
            str(runner.work_dir),
        )


def last_checkpoint(runner: Runner) -> Path:
    """The checkpoint that a finished run ends with.

    Raises:
        FileNotFoundError: the config lets the run write none.
    """
    path = newest_valid_checkpoint(runner.work_dir)
    if path is None:
        raise FileNotFoundError(f"the config let the run in {runner.work_dir} save no checkpoint")
    return path


def _agreed(decide: Callable[[], T]) -> T:
    """What the first process decides, in all of them; an error that it meets is raised in all.

    With GPUs the processes are not joined yet: each decides for itself, before the first one makes
    the folders of the run, since the Runner waits for all.
    """
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    decision, failure = outcome
    if failure is not None:
        raise failure
    return decision


def _add_hooks(cfg: Config) -> list[str]:
    hooks = list(cfg.get("custom_hooks") or [])
    present = {hook["type"] for hook in hooks if isinstance(hook, dict)}
    missing = [hook for hook in REQUIRED_HOOKS if not {hook, hook.__name__} & present]
    cfg.custom_hooks = [*hooks, *(dict(type=hook.__name__) for hook in missing)]
    notes = [f"added {hook.__name__}, which the config lacks" for hook in missing]
    return notes + _make_checkpoints_durable(cfg)


def _make_checkpoints_durable(cfg: Config) -> list[str]:
    """Let `DurableCheckpointHook` do what mmengine's CheckpointHook is asked for."""
    hooks = dict(cfg.get("default_hooks") or {})
    hook = hooks.setdefault("checkpoint", dict(type="CheckpointHook"))
    kind = (hook or {}).get("type")
    if kind is not CheckpointHook and str(kind).split(".")[-1] != CheckpointHook.__name__:
        return []
    hooks["checkpoint"] = dict(hook, type=DurableCheckpointHook.__name__)
    cfg.default_hooks = hooks
    return ["DurableCheckpointHook takes the place of CheckpointHook"]
