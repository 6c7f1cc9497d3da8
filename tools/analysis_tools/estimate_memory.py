"""Print what each GPU needs for pre-training, worked out from shapes alone, as a Markdown table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from mmconvnextv2.analysis.gpu_memory import GpuMemory, estimate_memory
from mmconvnextv2.analysis.measured_step import precision_of

HEADER = "| config | GPUs | precision | weights | gradients | optimizer | activations | together |"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="GB of a thousand million bytes, of the GPU that holds most. Nothing is measured.",
    )
    parser.add_argument("configs", nargs="+", type=Path, help="configs of FCMAE")
    parser.add_argument("--gpus", nargs="+", type=int, default=[8], help="numbers of GPUs (8)")
    parser.add_argument("--batch", type=int, help="images of a GPU (that of the config)")
    parser.add_argument("--amp", action="store_true", help="in bf16 as well, as train.py --amp")
    return parser.parse_args(argv)


def row(name: str, gpus: int, precision: str, memory: GpuMemory) -> str:
    """A row of the table."""
    parts = (memory.parameters, memory.gradients, memory.optimizer, memory.activations)
    figures = [f"{count / 1e9:.1f}" for count in (*parts, memory.total)]
    return f"| `{name}` | {gpus} | {precision} | {' | '.join(figures)} |"


def main(argv: list[str] | None = None) -> int:
    """Estimate and print; one line says what is wrong with bad input."""
    args = parse_args(argv)
    wrappers = [None, "AutocastOptimWrapper"] if args.amp else [None]
    cases = [(path, gpus, kind) for path in args.configs for gpus in args.gpus for kind in wrappers]
    lines = [HEADER, "| --- |" + " ---: |" * (HEADER.count("|") - 2)]
    try:
        for path, gpus, kind in track(cases, console=Console(stderr=True), transient=True):
            cfg = Config.fromfile(path)
            if kind is not None:
                cfg.optim_wrapper.type = kind
            memory = estimate_memory(cfg, gpus, args.batch)
            lines.append(row(path.name, gpus, precision_of(cfg), memory))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
