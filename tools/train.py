"""Train from a config: pre-training, classification, detection or segmentation alike."""

from __future__ import annotations

import argparse
import sys

from mmengine.config import Config

from mmconvnextv2.apis.launch import (
    USER_ERRORS,
    add_launch_arguments,
    add_start_arguments,
    join_processes,
    leave_processes,
    load_config,
    train,
    world_size,
)
from mmconvnextv2.engine.learning_rate import batch_terms, scale_learning_rate


def parse_args() -> argparse.Namespace:
    """Arguments of the command line, named as in OpenMMLab's own scripts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, e.g. one of configs/fcmae/")
    add_start_arguments(parser)
    parser.add_argument("--amp", action="store_true", help="mixed precision in bf16, CPU or GPU")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate to processes x batch x accumulated batches",
    )
    add_launch_arguments(parser)
    return parser.parse_args()


def use_autocast(cfg: Config) -> str:
    """Put the project's bf16 wrapper in the place of a plain OptimWrapper; returns a log line.

    Raises:
        ValueError: if the config has a wrapper of another kind, or none.
    """
    if cfg.get("optim_wrapper") is None:
        raise ValueError("--amp: the config has no optim_wrapper, so it does not train")
    kind = cfg.optim_wrapper.get("type", "OptimWrapper")
    name = kind.split(".")[-1] if isinstance(kind, str) else kind.__name__
    if name == "AmpOptimWrapper":
        return "--amp: the config's own AmpOptimWrapper stays as it is"
    if name not in ("OptimWrapper", "AutocastOptimWrapper"):
        raise ValueError(f"--amp replaces OptimWrapper alone, and the config has {name}")
    cfg.optim_wrapper.type = "AutocastOptimWrapper"
    return "--amp: mixed precision in bf16 (AutocastOptimWrapper)"


def scale_rate(cfg: Config, launcher: str) -> str:
    """Scale the learning rate to the batch of this run; returns a log line."""
    processes = world_size(launcher)
    factor = scale_learning_rate(cfg, processes)
    return (
        f"learning rate scaled by {factor:g} to {cfg.optim_wrapper.optimizer.lr:g}: "
        f"{batch_terms(cfg, processes)}, base batch {cfg.auto_scale_lr.base_batch_size}"
    )


def main() -> int:
    """Exit status: 0 after training, 2 for what the user can put right (docs/reliability.md)."""
    args = parse_args()
    notes = []
    try:
        cfg = load_config(args)
        if args.amp:
            notes.append(use_autocast(cfg))
        if args.auto_scale_lr or (cfg.get("auto_scale_lr") or {}).get("enable", False):
            notes.append(scale_rate(cfg, args.launcher))
        notes += join_processes(cfg, args.launcher)
    except (ValueError, *USER_ERRORS) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    try:
        train(cfg, notes, resume=args.resume, overwrite=args.overwrite)
    except USER_ERRORS as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except SystemExit:  # a clean stop, after which no process waits for another
        leave_processes()
        raise
    leave_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main())
