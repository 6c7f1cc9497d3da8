"""Show a run on one page: settings, curves, pictures, metrics."""

from __future__ import annotations

from collections.abc import Sequence

from mmconvnextv2.cli.arguments import Parser, call_arguments, command_parser
from mmconvnextv2.cli.summary import print_summary


def parser() -> Parser:
    """The command's parser; its arguments are those of `mmconvnextv2.apis.run_report.report`."""
    made = command_parser("report", "RUN [--out FILE]", __doc__)
    made.add_argument("run", metavar="RUN", help="folder of a run, of any task")
    made.add_argument("--out", metavar="FILE", help="page to write (RUN/report.html)")
    return made


def run(argv: Sequence[str]) -> int:
    """Write the page."""
    given = call_arguments(parser().parse_args(argv))
    from mmconvnextv2.apis.run_report import report

    print_summary("report written", [("page", report(**given))])
    return 0
