"""Print the time and memory of a whole recipe, extrapolated from one measured step."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

from mmconvnextv2.analysis.measured_step import (
    Source,
    count_lasting,
    from_benchmark,
    from_measurement,
)
from mmconvnextv2.analysis.plan import (
    LastingMemory,
    Measurement,
    Plan,
    Schedule,
    check_efficiency,
    format_bytes,
    format_seconds,
    make_plan,
)
from mmconvnextv2.apis.cfg_options import CfgOptions, apply_options
from mmconvnextv2.engine.learning_rate import batch_terms

IMAGENET_1K = 1_281_167
"""Training images of ImageNet-1K, what configs read from a folder named imagenet."""

NEEDED = ("model", "train_cfg", "train_dataloader", "optim_wrapper")
"""What a config that trains has."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Give one source of a measured step: --step-seconds, --measure or --benchmark. It "
        "is a step of one process: forward, backward, optimizer.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="(1 8 64)"
    )
    parser.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help=f"images of the training set ({IMAGENET_1K} where the config's folder is imagenet)",
    )
    parser.add_argument(
        "--efficiency",
        type=float,
        default=1.0,
        metavar="E",
        help="speed of each of several processes, compared with one alone (1.0, the upper bound)",
    )
    parser.add_argument("--step-seconds", type=float, metavar="S", help="a step that you measured")
    parser.add_argument(
        "--measure", type=int, metavar="STEPS", help="time so many steps here, on random images"
    )
    parser.add_argument(
        "--benchmark",
        type=Path,
        metavar="FILE",
        help="results of `python -m mmconvnextv2.benchmark pretrain_step ... --json FILE`",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="B",
        help="images of that step: needed by --step-seconds, the config's for --measure",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help="settings to change in the config, e.g. train_dataloader.batch_size=32",
    )
    return parser.parse_args(argv)


def read_source(args: argparse.Namespace, cfg: Config) -> Source:
    """Take the measured step from where the command line says.

    Raises:
        ValueError: not exactly one source, or one that does not fit the config.
    """
    names = ("step_seconds", "measure", "benchmark")
    given = [name for name in names if getattr(args, name) is not None]
    if len(given) != 1:
        flags = [f"--{name.replace('_', '-')}" for name in given]
        raise ValueError(
            "one measured step is needed, from --step-seconds, --measure or --benchmark; got "
            f"{' and '.join(flags) or 'none'}"
        )
    if args.benchmark is not None:
        if args.batch is not None:
            raise ValueError("--batch: a benchmark says itself how many images its step has")
        return from_benchmark(cfg, args.benchmark)
    if args.measure is not None:
        batch = batch_terms(cfg, world_size=1).per_device if args.batch is None else args.batch
        # As the Runner does.
        torch.backends.cudnn.benchmark = (cfg.get("env_cfg") or {}).get("cudnn_benchmark", False)
        return from_measurement(cfg, args.measure, batch)
    if args.batch is None:
        raise ValueError("--step-seconds needs --batch, the images of the step")
    return Source(Measurement(args.step_seconds, args.batch), "given by --step-seconds")


def read_schedule(cfg: Config) -> Schedule:
    """Read how long a config trains.

    Raises:
        ValueError: it has no training loop, no batch size, or a loop of an unknown kind.
    """
    missing = [key for key in NEEDED if not cfg.get(key)]
    if missing:
        raise ValueError(f"the config does not train, it has no {' and no '.join(missing)}")
    loop = cfg.train_cfg
    if ("max_epochs" in loop) == ("max_iters" in loop):
        raise ValueError(f"train_cfg must have either max_epochs or max_iters, got {dict(loop)}")
    terms = batch_terms(cfg, world_size=1)
    loader = cfg.train_dataloader
    return Schedule(
        per_device=terms.per_device,
        accumulation=terms.accumulation,
        epochs=loop.get("max_epochs"),
        max_iterations=loop.get("max_iters"),
        drop_last=(loader.get("batch_sampler") or loader).get("drop_last", False),
    )


def count_images(cfg: Config, schedule: Schedule, given: int | None) -> int | None:
    """Images of the training set; None where the schedule does not need them.

    Raises:
        ValueError: nobody says how many there are.
    """
    if given is not None and given < 1:
        raise ValueError(f"--num-images must be at least 1, got {given}")
    if given is not None or schedule.epochs is None:
        return given
    dataset = cfg.train_dataloader.dataset
    dataset = dataset.get("dataset", dataset)
    if Path(dataset.get("data_root") or "").name == "imagenet":
        return IMAGENET_1K
    raise ValueError("say how many training images there are: --num-images N")


def report(
    schedule: Schedule,
    num_images: int | None,
    source: Source,
    lasting: LastingMemory,
    plans: Sequence[Plan],
) -> list[str]:
    """What was measured, what is counted, and a row for each number of processes."""
    measured = source.measurement
    length = f"{schedule.max_iterations} iterations"
    if schedule.epochs is not None:
        length = f"{schedule.epochs} epochs of {num_images} images"
    lines = [
        f"recipe     {length}, batches of {schedule.per_device} images in each process, "
        f"{schedule.accumulation} of them an update",
        f"measured   {measured.seconds:.4g} s a step of {measured.batch} images, "
        f"{measured.batch / measured.seconds:.4g} images a second: {source.text}",
        f"counted    parameters {format_bytes(lasting.parameters)}, gradients "
        f"{format_bytes(lasting.gradients)} (twice with several processes), optimizer state "
        f"{format_bytes(lasting.optimizer)}"
        + (f", averaged weights {format_bytes(lasting.averaged)}" if lasting.averaged else ""),
    ]
    if measured.activations is not None:
        text = f"measured   activations {format_bytes(measured.activations)} for that step"
        lines.insert(2, text)
    header = ["processes", "s/iteration", "step", "images/s", "images/update", "updates"]
    header += ["images seen", "whole run", "memory/process"]
    rows = [_row(plan, schedule) for plan in plans]
    return [*lines, "", *_table(header, rows), ""]


def _row(plan: Plan, schedule: Schedule) -> list[str]:
    return [
        str(plan.processes),
        f"{plan.iteration_seconds:.4g}",
        "measured" if plan.measured else "extrapolated",
        f"{plan.images_per_second:.4g}",
        str(plan.processes * schedule.per_device * schedule.accumulation),
        str(plan.length.updates),
        f"{plan.length.images:.4g}",
        format_seconds(plan.seconds),
        "not measured" if plan.memory is None else format_bytes(plan.memory),
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [header, *rows]
    ]


def assumptions(cfg: Config, schedule: Schedule, plans: Sequence[Plan], efficiency: float) -> str:
    """What the extrapolated figures rest on."""
    lines = [
        "The whole run is extrapolated in every row: iterations x seconds, without validation, "
        "checkpoints and waiting for data.",
        "An extrapolated step takes time and activations in proportion to the images of its batch.",
    ]
    if any(plan.processes > 1 for plan in plans):
        bound = " (perfect scaling, an upper bound)" if efficiency == 1 else ""
        lines.append(
            f"Several processes are taken to run at an efficiency of {efficiency:g}{bound}: the "
            "speed of each, compared with one alone."
        )
    base = (cfg.get("auto_scale_lr") or {}).get("base_batch_size", 0)
    images = {plan.processes: plan.processes * schedule.per_device for plan in plans}
    counts = {n: base // images[n] for n in images if base and base % images[n] == 0}
    if schedule.epochs is not None and any(c != schedule.accumulation for c in counts.values()):
        listed = ", ".join(f"{count} with {n}" for n, count in counts.items())
        lines.append(
            f"The recipe's rates are for {base} images an update. What gives them, in about the "
            f"same time, is optim_wrapper.accumulative_counts={listed}."
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 after the table, 2 with one line that says what is wrong with the input."""
    args = parse_args(argv)
    try:
        cfg = Config.fromfile(args.config)
        if args.cfg_options:
            apply_options(cfg, args.cfg_options)
        schedule = read_schedule(cfg)
        num_images = count_images(cfg, schedule, args.num_images)
        # What is wrong is said before anything is timed.
        check_efficiency(args.efficiency)
        for processes in args.processes:
            schedule.length(processes, num_images)
        source = read_source(args, cfg)
        lasting = count_lasting(cfg)
        plans = [
            make_plan(schedule, source.measurement, lasting, n, num_images, args.efficiency)
            for n in args.processes
        ]
    except (ValueError, OSError) as error:
        print(f"plan_run.py: {error}", file=sys.stderr)
        return 2
    print(f"config     {args.config}")
    print("\n".join(report(schedule, num_images, source, lasting, plans)))
    print(assumptions(cfg, schedule, plans, args.efficiency))
    return 0


if __name__ == "__main__":
    sys.exit(main())
