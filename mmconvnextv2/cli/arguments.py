"""What several commands have in common: a parser, arguments, and how their values are read.

A parser has no defaults: what is not on the command line is not passed on, so that the defaults are
those of the Python calls. The help states them.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

ARCHS = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
"""Those of `mmconvnextv2.nn`, known without torch."""


class Parser(argparse.ArgumentParser):
    """A parser that tells what is wrong in one sentence and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        """See argparse."""
        self.exit(
            2,
            f"{self.prog}: {message}{self._guess(message)}; `{self.prog} --help` tells what is "
            "allowed\n",
        )

    def _guess(self, message: str) -> str:
        """The words that may have been meant by those that argparse does not know."""
        wrong = re.findall(r"--[\w-]+", message.partition("unrecognized arguments: ")[2])
        allowed: Iterable[str] = self._option_string_actions
        if choice := re.search(r"invalid choice: '(.+)' \(choose from (.+)\)", message):
            wrong, allowed = [choice[1]], re.findall(r"[\w-]+", choice[2])
        near = [match for word in wrong for match in difflib.get_close_matches(word, allowed, 1)]
        return f" (did you mean {', '.join(near)}?)" if near else ""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=25)


def command_parser(name: str, usage: str, description: str | None, epilog: str = "") -> Parser:
    """Make the parser of a command, without arguments but `--help` and `--debug`.

    Args:
        name: of the command.
        usage: what follows the name.
        description: what the command does.
        epilog: shown below the options as it stands.
    """
    parser = Parser(
        prog=f"mmconvnextv2 {name}",
        usage=f"%(prog)s {usage}",
        description=(description or "").rstrip(),
        epilog=epilog,
        formatter_class=_HelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add_debug(parser)
    return parser


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`, which stands before or behind the command's name."""
    parser.add_argument(
        "--debug", action="store_true", default=False, help="show where an error comes from"
    )


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `pretrain` and `finetune` understand alike: how to compute, log, resume."""
    parser.add_argument("--num-workers", type=int, metavar="N", help="processes that read images")
    parser.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), help="auto is bf16 on a GPU that has it"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to train (auto)")
    parser.add_argument(
        "--tracker", choices=("wandb", "mlflow"), help="log there too; TensorBoard is always on"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="CHECKPOINT",
        help="go on with the run in --out, from its newest valid checkpoint or this one",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="settings of the config, such as param_scheduler.0.end=2",
    )


def call_arguments(args: argparse.Namespace, there: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of the Python call that a command line stands for.

    Args:
        args: what the command's parser has found.
        there: arguments that are files or folders to read. A slip is told before anything is
            imported, which takes seconds.

    Raises:
        FileNotFoundError: one of them does not exist.
    """
    given = {name: value for name, value in vars(args).items() if name != "debug"}
    for name in there:
        if name in given:
            _check_there(given[name], f"--{name}")
    if "cfg_options" in given:
        given["cfg_options"] = _read_options(given["cfg_options"])
    return given


def _check_there(path: str, option: str) -> None:
    if path and Path(path).expanduser().exists():
        return
    above = next(parent for parent in Path(path).expanduser().absolute().parents if parent.exists())
    hint = f"{above} does"
    if not path or above.parent == above:
        hint = "is the shell variable in front of it set in this terminal?"
    raise FileNotFoundError(f"{option}: {path or 'an empty path'} does not exist; {hint}")


def _read_options(words: Sequence[str]) -> dict[str, Any]:
    from mmconvnextv2.apis.cfg_options import CfgOptions

    parser = Parser(prog="mmconvnextv2", add_help=False)
    parser.add_argument("--cfg-options", nargs="+", action=CfgOptions)
    return parser.parse_args(["--cfg-options", *words]).cfg_options
