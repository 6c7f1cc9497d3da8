"""Code on the pages: Python blocks run, and commands have the options that they are given.

What takes long or needs a network is checked by its parts: every name that is imported exists. The
calls that train are replaced by ones that only look at their arguments; tests/test_apis trains.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmconvnextv2
from mmconvnextv2.apis.results import Predictions, RunResult
from mmconvnextv2.apis.settings import FINE_TUNING_EPOCHS, PRETRAINING_EPOCHS
from mmconvnextv2.cli.main import COMMANDS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
RUN = ("README", "faq", "finetune", "index", "pretrain", "quick_start", "visible_only")
"""Pages whose Python blocks run as they stand; others need downloads or a trained model."""

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
OTHER_PROGRAMS = {"pip", "python3", "source", "sudo", "docker", "tensorboard", "torchrun", "cd"}


def blocks(page: Path, *kinds: str) -> list[str]:
    """The code blocks of some languages; blocks inside tabs and boxes are indented."""
    pattern = rf"^( *)```(?:{'|'.join(kinds)})\n(.*?)^\1```"
    found = re.findall(pattern, page.read_text(), flags=re.M | re.S)
    return [re.sub(f"^{indent}", "", text, flags=re.M) for indent, text in found]


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, without assignments before them."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


def options_of(source: Path) -> set[str]:
    """Every option that a script, or a module of ours that it imports, has in its text."""
    tree = ast.parse(source.read_text())
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    options = {text for text in texts if isinstance(text, str) and re.fullmatch(r"--[a-z-]+", text)}
    if ROOT / "mmconvnextv2" not in source.parents:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmconvnextv2."):
                module = ROOT / f"{node.module.replace('.', '/')}.py"
                options |= options_of(module) if module.is_file() else set()
    return options


def check_command(words: list[str]) -> None:
    program, *rest = words
    given = {word.split("=")[0] for word in rest if re.match(r"--[a-z]", word)}
    if program == "mmconvnextv2":
        COMMANDS[rest[0]].parser().parse_args(rest[1:])
    elif program == "make":
        assert rest[0] in TARGETS, f"make {rest[0]}"
    elif program == "python" and rest[0] == "-m":
        package = ROOT / rest[1].replace(".", "/")
        known = {option for file in package.glob("*.py") for option in options_of(file)}
        assert given <= known, words
    elif program == "python":
        assert given <= options_of(ROOT / rest[0]), words
    elif program.startswith("tools/"):
        assert (ROOT / program).is_file(), program
    else:
        assert program in OTHER_PROGRAMS, words
        files = [b for a, b in zip(rest, rest[1:], strict=False) if a in {"-r", "-c", "-f"}]
        assert all((ROOT / file).is_file() for file in files), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(page: Path) -> None:
    for words in commands(page):
        try:
            check_command(words)
        except (SystemExit, argparse.ArgumentError, KeyError) as error:
            pytest.fail(f"{page.name}: {shlex.join(words)}: {error}")


def test_the_quick_start_has_its_four_commands() -> None:
    named = [words[1] for words in commands(ROOT / "docs/quick_start.md") if len(words) > 3]
    steps = ["pretrain", "reconstruct", "finetune", "predict"]
    assert [name for name in named if name in steps] == steps
    index = [words[1] for words in commands(ROOT / "docs/index.md")]
    assert index == steps


@pytest.mark.parametrize(
    ("name", "table"), [("pretrain", PRETRAINING_EPOCHS), ("finetune", FINE_TUNING_EPOCHS)]
)
def test_epochs_are_those_of_the_calls(
    name: str, table: tuple[tuple[int | None, int], ...]
) -> None:
    text = (ROOT / f"docs/{name}.md").read_text().partition("<!-- epochs: begin -->\n")[2]
    header, _, row = text.partition("\n<!-- epochs: end -->")[0].splitlines()
    most = ["more" if count is None else f"{count:,}" for count, _ in table]
    assert header.split(" | ")[1:] == [*most[:-1], f"{most[-1]} |"]
    assert row == f"| epochs | {' | '.join(str(epochs) for _, epochs in table)} |"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_that_are_imported_exist(page: Path) -> None:
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "mmconvnextv2":
                    assert hasattr(mmconvnextv2, node.attr), ast.unparse(node)


def arguments_only(call: Callable[..., Any], result: Any) -> Callable[..., Any]:
    """A stand-in that takes what `call` takes."""

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        inspect.signature(call).bind(*args, **kwargs)
        return result

    return stand_in


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the files that the pages speak of, and calls that return at once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labelled/annotations/training").mkdir(parents=True)
    colours_HWC = np.zeros((2, 2, 3), np.uint8)
    colours_HWC[0, 1] = (255, 0, 0)
    colours_HWC[1, 1] = (1, 2, 3)
    Image.fromarray(colours_HWC).save(tmp_path / "labelled/annotations/training/0.png")
    folder = tmp_path / "run"
    figures: dict[str, float] = defaultdict(float)
    run = RunResult("", folder, folder / "config.py", folder / "epoch_1.pth", figures, 1.0, 1.0)
    found = Predictions("", (folder / "0.png",), folder / "predictions.json")
    results = dict(pretrain=run, finetune=run, predict=found, reconstruct=Image.new("RGB", (1, 1)))
    for name, result in results.items():
        stand_in = arguments_only(getattr(mmconvnextv2, name), result)
        monkeypatch.setitem(vars(mmconvnextv2), name, stand_in)
    return tmp_path


@pytest.mark.parametrize("name", RUN)
def test_python_blocks_run(name: str, workplace: Path) -> None:
    page = next(page for page in PAGES if page.stem == name)
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), {})
    if name == "finetune":
        mask_HW = np.asarray(Image.open(workplace / "labelled/annotations/training/0.png"))
        assert mask_HW.tolist() == [[0, 1], [0, 255]]


def test_the_notebook_was_run_as_it_stands() -> None:
    """From top to bottom, without an error, with its pictures, and no trace of a machine."""
    text = (ROOT / "docs/notebooks/first_steps.ipynb").read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert len(text) < 1_000_000 and not re.search(r"/(tmp|home|root)/", text)
    for cell in cells:
        source = "".join(line for line in cell["source"] if not line.startswith("%%"))
        for node in ast.walk(ast.parse(source)):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if re.fullmatch(r"mmconvnextv2\.\w+", name):
                call = getattr(mmconvnextv2, name.partition(".")[2])
                inspect.signature(call).bind(*node.args, **{k.arg: k.value for k in node.keywords})
