"""The command line as a whole: which command runs, and how its errors are told."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from mmconvnextv2.cli import (
    benchmark,
    convert,
    demo,
    doctor,
    finetune,
    predict,
    pretrain,
    reconstruct,
    report,
)
from mmconvnextv2.cli.arguments import Parser, add_debug
from mmconvnextv2.cli.console import short_console
from mmconvnextv2.version import __version__

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(pretrain, finetune, reconstruct, predict, report),
        *(demo, doctor, convert, benchmark),
    )
}
"""Module of each command, in the order of the help."""


def parser() -> argparse.ArgumentParser:
    """The parser that picks the command and leaves the rest of the line to it."""
    summaries = "".join(
        f"\n  {name:<13}{(module.__doc__ or '').partition('.')[0]}"
        for name, module in COMMANDS.items()
    )
    top = Parser(
        prog="mmconvnextv2",
        usage="%(prog)s COMMAND [options]",
        epilog="mmconvnextv2 COMMAND --help tells the options of a command.",
        description="ConvNeXt V2: pre-train on your own images, fine-tune, look at what came out."
        f"\n\ncommands:{summaries}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    add_debug(top)
    top.add_argument(
        "command", nargs="?", metavar="COMMAND", choices=list(COMMANDS), help=argparse.SUPPRESS
    )
    top.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; without a command, tell which there are.

    Args:
        argv: what follows `mmconvnextv2`; taken from the process when None.

    Returns:
        Exit code: 0, or what the command's module says; 2, with one sentence on stderr, for what
        the user can put right; 130 after Ctrl-C. A fault of the program keeps its traceback.
    """
    args = parser().parse_args(argv)
    if args.command is None:
        parser().print_help(sys.stderr)
        return 2
    options = [word for word in args.rest if word != "--debug"]
    debug = args.debug or len(options) < len(args.rest)
    try:
        with short_console():
            return COMMANDS[args.command].run(options)
    except KeyboardInterrupt:
        print(f"mmconvnextv2 {args.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        if debug:
            traceback.print_exc()
        print(f"mmconvnextv2 {args.command}: {_sentence(error)}", file=sys.stderr)
        return 2


def _is_for_the_user(error: Exception) -> bool:
    if isinstance(error, (ValueError, OSError, ImportError)):
        return True
    # The errors of a run exist only where the module that starts runs has been loaded.
    launch = sys.modules.get("mmconvnextv2.apis.launch")
    return launch is not None and isinstance(error, launch.USER_ERRORS)


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error}: `mmconvnextv2 doctor` says what is missing and how to install it"
    return str(error)
