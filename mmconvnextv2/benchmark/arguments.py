"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmconvnextv2.benchmark.compare import Settings
from mmconvnextv2.benchmark.steps import DTYPES
from mmconvnextv2.nn import ARCHITECTURES, CELL_SIZE


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark understands."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group = parser.add_argument_group("what every benchmark understands")
    group.add_argument("--arch", choices=list(ARCHITECTURES), default="tiny", help="size (tiny)")
    group.add_argument("--batch", type=positive_int, default=8, help="images of a step (8)")
    group.add_argument(
        "--image-size", type=image_side, default=224, help="their side in pixels (224)"
    )
    group.add_argument(
        "--device", type=_device, default=default, help=f"cpu, cuda or cuda:N (here {default})"
    )
    group.add_argument(
        "--dtype", choices=list(DTYPES), default="fp32", help="bf16 is autocast (fp32)"
    )
    group.add_argument("--threads", type=positive_int, help="threads of the CPU (torch's choice)")
    group.add_argument("--repeat", type=positive_int, default=5, help="rounds that count (5)")
    group.add_argument("--warmup", type=_natural_int, default=1, help="rounds before them (1)")
    group.add_argument(
        "--min-seconds",
        type=_seconds,
        default=0.1,
        help="a sample repeats a call until it takes this long (0.1)",
    )
    group.add_argument("--seed", type=_natural_int, default=0, help="of weights and images (0)")
    group.add_argument("--compile", action="store_true", help="add alternatives compiled by torch")
    group.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="names or patterns to take part"
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")


def settings_from(args: argparse.Namespace, progress: Callable[[str], None]) -> Settings:
    """The settings that a command line asks for.

    Args:
        args: parsed arguments of `add_common_arguments`.
        progress: told what is going on.
    """
    return Settings(
        arch=args.arch,
        batch=args.batch,
        image_size=args.image_size,
        device=args.device,
        dtype=DTYPES[args.dtype],
        repeat=args.repeat,
        warmup=args.warmup,
        min_seconds=args.min_seconds,
        seed=args.seed,
        compile=args.compile,
        only=tuple(args.only),
        progress=progress,
    )


def jsonable_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON takes them."""
    plain = (bool, int, float, str, list, type(None))
    return {
        name: value if isinstance(value, plain) else str(value)
        for name, value in sorted(vars(args).items())
        if not callable(value)
    }


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise argparse.ArgumentTypeError(f"torch finds {count} CUDA devices here, got {text!r}")
    return device


def positive_int(text: str) -> int:
    """Read an integer of at least 1."""
    return _integer(text, 1)


def _natural_int(text: str) -> int:
    return _integer(text, 0)


def image_side(text: str) -> int:
    """Read the side of an image that cells fit into."""
    size = _integer(text, CELL_SIZE)
    if size % CELL_SIZE:
        raise argparse.ArgumentTypeError(f"must be a multiple of {CELL_SIZE}, got {text}")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r}")
    return seconds


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
    return value
