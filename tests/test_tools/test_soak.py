"""tools/soak.py and docs/reliability.md: rows from reports, and every promise with its tests."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")

SAMPLE = """
import pytest
from hypothesis import given, settings, strategies


@pytest.mark.fault(1, "killed", "whole")
@pytest.mark.parametrize("kind", ["a", "b"])
def test_killed(kind, soak_count):
    assert soak_count(1, 20) == 20


@pytest.mark.fault(1, "killed", "whole")
@pytest.mark.soak
def test_killed_for_longer(record_property):
    record_property("measured", "0.5 s a kill")


@pytest.mark.fault(8, "fuzzed", "clear error")
@settings(max_examples=7)
@given(number=strategies.integers())
def test_fuzzed(number):
    assert isinstance(number, int)


@pytest.mark.fault(2, "skipped", "nothing")
def test_skipped():
    pytest.skip("not here")


@pytest.mark.fault(3, "failed", "nothing")
def test_failed():
    raise AssertionError


def test_of_no_fault():
    raise AssertionError
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", ROOT / "tools" / "soak.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_rows_come_from_the_marked_tests_that_passed(tool: ModuleType, tmp_path: Path) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    settings = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path))
    command = [sys.executable, "-m", "pytest", *settings, "-p", "no:cacheprovider", str(tmp_path)]
    command += ["-m", "fault or soak", f"--junitxml={tmp_path / 'report.xml'}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    result = subprocess.run(
        command, env={**environment, "MMCONVNEXTV2_SOAK": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stdout + result.stderr
    killed, fuzzed = tool.read_report(tmp_path / "report.xml")
    assert (killed.promise, killed.tried, killed.outcome) == (1, "killed", "whole")
    assert killed.times == 20 + 20 + 1
    assert killed.tests == [
        "test_sample.py::test_killed",
        "test_sample.py::test_killed_for_longer",
    ]
    assert killed.measured == ["0.5 s a kill"]
    assert (fuzzed.promise, fuzzed.times) == (8, 7)
    assert tool.without_test([killed, fuzzed]) == [2, 3, 4, 5, 6, 7, 9, 10, 11]

    table = tool.write_table([killed, fuzzed], seconds=90)
    assert "2 kinds of faults, 48 tries, none lost, in 2 minutes" in table
    assert table.splitlines()[-1].startswith("| 8 | fuzzed | 7 | clear error | `test_sample.py::")


def test_the_table_takes_the_place_of_the_last_one(tool: ModuleType) -> None:
    before, after = f"# Title\n\n{tool.BEGIN}\n", f"\n{tool.END}\nend\n"
    changed = tool.replace_table(f"{before}old\n\\1{after}", r"new \1")
    assert changed == f"{before}new \\1{after}"
    with pytest.raises(ValueError, match="once each"):
        tool.replace_table("# Title\n", "new")
    assert tool.replace_table(PAGE, "new") != PAGE, "the page has the markers"


def functions(path: Path) -> set[str]:
    """Names of the functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_promise_of_the_page_names_tests_that_exist() -> None:
    sections = re.split(r"^## (?=\d+\. )", PAGE, flags=re.MULTILINE)[1:]
    numbers = [int(section.split(".")[0]) for section in sections]
    assert numbers == list(range(1, 12))
    for section in sections:
        section = section.partition("\n## ")[0]
        named = re.findall(r"`(test_[\w/]+\.py)(?:::(test_\w+))?`", section)
        assert named, f"no test is named in: {section[:60]}"
        for file, function in named:
            assert (TESTS / file).is_file(), file
            assert not function or function in functions(TESTS / file), f"{file}::{function}"


def test_each_promise_has_a_test_with_its_number() -> None:
    marker = re.compile(r"mark\.fault\(\s*(\d+)\s*,")
    found = {
        int(number)
        for path in TESTS.rglob("test_*.py")
        if path != Path(__file__)
        for number in marker.findall(path.read_text(encoding="utf-8"))
    }
    assert found == set(range(1, 12))
