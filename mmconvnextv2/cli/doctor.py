"""Check environment, machine and folders, and say what to do."""

from __future__ import annotations

from collections.abc import Sequence

from mmconvnextv2.cli.arguments import Parser, call_arguments, command_parser
from mmconvnextv2.cli.summary import print_next


def parser() -> Parser:
    """The command's parser; its arguments are those of `mmconvnextv2.apis.doctor.doctor`."""
    made = command_parser(
        "doctor",
        "[--data DIR] [--out DIR]",
        __doc__,
        "exit code: 0 when all that is needed is there, 1 otherwise",
    )
    made.add_argument("--data", metavar="DIR", help="images that you want to train on")
    made.add_argument("--out", metavar="DIR", help="folder that a run is to write to (.)")
    return made


def run(argv: Sequence[str]) -> int:
    """Check; one line each."""
    given = call_arguments(parser().parse_args(argv))
    from mmconvnextv2.apis.doctor import doctor

    checks = doctor(**given)
    for check in checks:
        word = "ok" if check.ok else "optional" if check.optional else "TO DO"
        print(f"{word:<9} {check.name:<16} {check.says}")
    to_do = [check.name for check in checks if not (check.ok or check.optional)]
    if to_do:
        print(f"\nto put right: {', '.join(to_do)}")
        return 1
    print("\nall that is needed is there")
    print_next("pretrain", "--data", given.get("data", "DIR"), "--out", "runs/fcmae")
    return 0
