"""Try trained models on your pictures, in a browser."""

from __future__ import annotations

from collections.abc import Sequence

from mmconvnextv2.cli.arguments import Parser, call_arguments, command_parser

RUNS = "work_dirs/demo"


def parser() -> Parser:
    """The command's parser; its arguments are those of `mmconvnextv2.web.serve`."""
    made = command_parser("demo", "[--runs DIR] [--host ADDRESS] [--port N]", __doc__)
    add = made.add_argument
    add(
        "--runs",
        default=RUNS,
        metavar="DIR",
        help=f"folder of runs: fcmae/, detection/, segmentation/ ({RUNS})",
    )
    add(
        "--host",
        metavar="ADDRESS",
        help="who may connect: 127.0.0.1 this machine alone, 0.0.0.0 anyone (127.0.0.1)",
    )
    add("--port", type=int, metavar="N", help="of the page (7860)")
    return made


def run(argv: Sequence[str]) -> int:
    """Serve the page until it is interrupted."""
    given = call_arguments(parser().parse_args(argv))
    from mmconvnextv2.web import serve

    serve(**given)
    return 0
