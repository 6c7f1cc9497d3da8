"""Command line: ``python -m mmconvnextv2.benchmark NAME [options]``."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable

import torch

from mmconvnextv2.benchmark import dataload, dense, pretrain_step, report, scaling
from mmconvnextv2.benchmark.arguments import (
    add_common_arguments,
    jsonable_arguments,
    settings_from,
)
from mmconvnextv2.benchmark.environment import describe_environment
from mmconvnextv2.benchmark.results import make_document, print_tables, write_document

BENCHMARKS = (pretrain_step, dense, dataload, scaling)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser, one subcommand a benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m mmconvnextv2.benchmark",
        description="Alternatives measured side by side; every figure goes to --json.",
    )
    add_benchmarks(parser)
    return parser


def add_benchmarks(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to a parser; `run_benchmark` takes what it then reads."""
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="NAME")
    for module in (*BENCHMARKS, report):
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").strip().partition(": ")[2]
        command = commands.add_parser(name, help=summary, description=summary)
        if module is not report:
            add_common_arguments(command)
            command.set_defaults(run=module.run)
        if hasattr(module, "add_arguments"):
            module.add_arguments(command)


def run_benchmark(args: argparse.Namespace, command: str) -> None:
    """Do what a command line asks for: measure, or write the report of what was measured.

    Args:
        args: what the parser read.
        command: the command line itself, to be written beside the figures.

    Raises:
        ValueError: an argument, or a file of figures, is not what is allowed.
        OSError: a file cannot be read or written.
    """
    if args.benchmark == "report":
        print(report.write_report(args.json, args.out, args.plans, args.notes))
    else:
        _measure(args, command)


def _measure(args: argparse.Namespace, command: str) -> None:
    """Measure, show, and write what `--json` asks for."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    settings = settings_from(args, progress_line())
    # Told before, so that the load is that of other programs.
    environment = describe_environment(settings.device)
    found = args.run(settings, args)
    settings.progress("")
    document = make_document(args.benchmark, command, jsonable_arguments(args), environment, found)
    print_tables(document)
    if args.json is not None:
        write_document(document, args.json)
        print(args.json)


def progress_line() -> Callable[[str], None]:
    """A display of what is going on: one line that changes, on a terminal; nothing elsewhere."""
    start = time.monotonic()

    def show(text: str) -> None:
        if sys.stderr.isatty():
            line = f"{time.monotonic() - start:6.0f} s  {text}"[:100] if text else ""
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return show


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark.

    Returns:
        0 on success, 1 on failure; a wrong command line exits with 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    try:
        run_benchmark(args, f"python -m mmconvnextv2.benchmark {shlex.join(argv)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
