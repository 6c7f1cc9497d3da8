"""`scaling`: cost against the visible share, image size, batch, architecture and processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from mmconvnextv2.benchmark.arguments import image_side, positive_int
from mmconvnextv2.benchmark.compare import Comparison, Row, Settings, compare
from mmconvnextv2.benchmark.ours import REFERENCE, draw_mask
from mmconvnextv2.benchmark.peers import LeftOut
from mmconvnextv2.benchmark.pretrain_step import masked_encoders
from mmconvnextv2.benchmark.processes import measure_processes
from mmconvnextv2.nn import ARCHITECTURES

SHARES = (1.0, 0.75, 0.5, 0.4, 0.25, 0.1)
SIZES = (128, 160, 192, 224, 256, 320, 384, 448, 512)
BATCHES = (1, 2, 4, 8, 16)
PROCESSES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone understands."""
    parser.add_argument(
        "--sweep", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="what to vary (all)"
    )
    parser.add_argument(
        "--shares", nargs="+", type=_share, default=list(SHARES), help="visible shares, 0 to 1"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=image_side, default=list(SIZES), help="image sides"
    )
    parser.add_argument(
        "--batches", nargs="+", type=positive_int, default=list(BATCHES), help="images of a step"
    )
    parser.add_argument(
        "--archs", nargs="+", choices=list(ARCHITECTURES), default=["atto", "nano", "tiny", "base"]
    )


def run(settings: Settings, args: argparse.Namespace) -> Comparison:
    """Vary one thing at a time; all layouts are measured side by side at each point.

    Args:
        settings: how to measure, and where each sweep that varies another thing stands.
        args: ``sweep`` and the points of each: ``shares``, ``sizes``, ``batches``, ``archs``.
    """
    found = Comparison()
    for name in args.sweep:
        found.extend(SWEEPS[name](settings, args))
    return found


def sweep_share(settings: Settings, args: argparse.Namespace) -> Comparison:
    """From a mask that removes nothing to one that leaves little."""
    found = Comparison()
    for share in args.shares:
        mask = draw_mask(settings, 1 - share)
        visible = (~mask[0]).sum().item()
        group = f"visible share {share:g} ({visible} of {mask[0].numel()} cells)"
        point = visible / mask[0].numel()
        found.extend(_encoders(settings, group, "visible share", point, 1 - share))
    return found


def sweep_size(settings: Settings, args: argparse.Namespace) -> Comparison:
    """Other sides of the images."""
    found = Comparison()
    for size in args.sizes:
        sized = replace(settings, image_size=size)
        found.extend(_encoders(sized, f"images of {size} px", "image size", size))
    return found


def sweep_batch(settings: Settings, args: argparse.Namespace) -> Comparison:
    """Other numbers of images."""
    found = Comparison()
    for batch in args.batches:
        sized = replace(settings, batch=batch)
        found.extend(_encoders(sized, f"batch of {batch}", "batch", batch))
    return found


def sweep_arch(settings: Settings, args: argparse.Namespace) -> Comparison:
    """Other architectures."""
    found = Comparison()
    for arch in args.archs:
        found.extend(_encoders(replace(settings, arch=arch), arch, "architecture", arch))
    return found


def sweep_processes(settings: Settings, args: argparse.Namespace) -> Comparison:
    """The whole step in one process and in two."""
    group, found = "processes", Comparison()
    settings.progress(f"{group}: 1 and {PROCESSES}")
    try:
        timings = measure_processes(settings, PROCESSES)
    except LeftOut as reason:
        found.left_out.append(dict(group=group, name=f"{PROCESSES} processes", reason=str(reason)))
        return found
    for number, timing in timings.items():
        name = f"{number} process{'es' if number > 1 else ''}"
        row = Row(group, name, number * settings.batch, timing, baseline="1 process")
        row.speedup = number * timings[1].median / timing.median
        found.rows.append(row)
    return found


SWEEPS: dict[str, Callable[[Settings, argparse.Namespace], Comparison]] = {
    "share": sweep_share,
    "size": sweep_size,
    "batch": sweep_batch,
    "arch": sweep_arch,
    "processes": sweep_processes,
}
"""What can be varied."""


def _encoders(
    settings: Settings, group: str, sweep: str, value: float | str, mask_ratio: float = 0.6
) -> Comparison:
    found = compare(group, masked_encoders(settings, mask_ratio), settings, [REFERENCE])
    for row in found.rows:
        row.point = dict(sweep=sweep, value=value)
    return found


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0, at most 1, got {text!r}")
    return share
