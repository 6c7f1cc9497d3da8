"""Measure speed and memory side by side with other implementations."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from mmconvnextv2.cli.arguments import Parser, add_debug


def parser() -> Parser:
    """The command's parser, one subcommand a benchmark."""
    from mmconvnextv2.benchmark.__main__ import add_benchmarks

    made = Parser(prog="mmconvnextv2 benchmark", description=__doc__, allow_abbrev=False)
    add_debug(made)
    add_benchmarks(made)
    return made


def run(argv: Sequence[str]) -> int:
    """Measure, and show the figures."""
    from mmconvnextv2.benchmark.__main__ import run_benchmark

    args = parser().parse_args(argv)
    del args.debug
    run_benchmark(args, f"mmconvnextv2 benchmark {shlex.join(argv)}")
    return 0
