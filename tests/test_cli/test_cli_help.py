"""The command line as it is read: help that fits a screen, the Python call behind each command."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Callable

import pytest

from mmconvnextv2.checkpoint import PUBLISHERS
from mmconvnextv2.cli import convert
from mmconvnextv2.cli.arguments import ARCHS
from mmconvnextv2.cli.main import COMMANDS, main
from mmconvnextv2.nn import ARCHITECTURES

pytestmark = pytest.mark.unit

CALLS = {
    "pretrain": ("mmconvnextv2", "pretrain"),
    "finetune": ("mmconvnextv2", "finetune"),
    "reconstruct": ("mmconvnextv2", "reconstruct"),
    "predict": ("mmconvnextv2", "predict"),
    "report": ("mmconvnextv2.apis.run_report", "report"),
    "demo": ("mmconvnextv2.web", "serve"),
    "doctor": ("mmconvnextv2.apis.doctor", "doctor"),
}
"""Where the call behind a command is; the other two have none."""


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The arguments of a command by name, without those that every command has."""
    return {a.dest: a for a in parser._actions if a.dest not in ("help", "debug")}


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_fits_a_screen(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of(words, capsys).splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 80
    if not words:
        assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    for action in options(COMMANDS[name].parser()).values():
        assert action.help or isinstance(action, argparse._SubParsersAction), action.dest


@pytest.mark.parametrize("name", CALLS)
def test_options_are_the_arguments_of_the_call(name: str) -> None:
    module, function = CALLS[name]
    call: Callable = getattr(importlib.import_module(module), function)
    parameters = inspect.signature(call).parameters
    found = options(COMMANDS[name].parser())
    assert found.keys() == parameters.keys()
    for option, action in found.items():
        parameter = parameters[option]
        if action.option_strings:
            assert action.option_strings == [f"--{option.replace('_', '-')}"]
        # `reconstruct` gives an image in Python; from a shell there has to be a file.
        if parameter.default is inspect.Parameter.empty:
            assert action.required or action.default is not argparse.SUPPRESS
        elif isinstance(parameter.default, str | int | float) and parameter.default is not False:
            stated = re.search(r"\(([^()]*)\)$", action.help or "")
            is_choice = action.choices and parameter.default in action.choices
            assert is_choice or (stated and stated[1] == str(parameter.default)), option


def test_names_stand_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pretrain", "finetune"):
        assert " ".join(ARCHITECTURES) in " ".join(help_of([name], capsys).split())
    assert tuple(ARCHITECTURES) == ARCHS
    assert set(convert.PUBLISHERS) == set(PUBLISHERS)


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == help_of([], capsys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train", "invalid choice: 'train'"),
        ("pretrian --data x", "(did you mean pretrain?)"),
        ("--no-such pretrain", "--no-such"),
        ("pretrain --data x --epoch 3", "arguments: --epoch 3 (did you mean --epochs?)"),
        ("pretrain --data x --zzz", "arguments: --zzz; `mmconvnextv2 pretrain --help`"),
        ("pretrain --data x --arch tny", "(did you mean tiny?)"),
        ("pretrain --data x --epochs many", "invalid int value: 'many'"),
        ("pretrain", "required: --data"),
        ("pretrain --data . --cfg-options epochs", "expected KEY=VALUE"),
        ("finetune --task captioning --data x --out y", "invalid choice: 'captioning'"),
        ("reconstruct --images . --checkpoint . --image-size 1 2 3", "one or two numbers, got 3"),
        ("convert a b --to keras", "invalid choice: 'keras'"),
        ("benchmark slowly", "invalid choice: 'slowly'"),
        ("report", "required: RUN"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(line.split())
    said = capsys.readouterr()
    assert exit_.value.code == 2 and said.out == ""
    assert said.err.startswith("mmconvnextv2") and said.err.count("\n") == 1
    assert message in said.err
