"""The page of recipes and weights: what the metafiles hold, each entry once."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()
ENTRIES = {
    entry["Name"]: entry
    for file in (ROOT / "configs").glob("*/metafile.yml")
    for entry in yaml.safe_load(file.read_text())["Models"]
}


def test_the_page_is_up_to_date() -> None:
    path = ROOT / "tools/analysis_tools/make_models_page.py"
    spec = importlib.util.spec_from_file_location("make_models_page", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.render(ROOT) == PAGE, "run tools/analysis_tools/make_models_page.py"


def test_every_entry_has_its_row_and_every_row_its_columns() -> None:
    rows = re.findall(r"^\| \[?`([^`]+)`.*\|$", PAGE, flags=re.MULTILINE)
    assert sorted(rows) == sorted(ENTRIES)
    for table in re.findall(r"(?:^\|.*\|\n)+", PAGE, flags=re.MULTILINE):
        assert len({line.count(" | ") for line in table.splitlines()}) == 1


def test_a_weight_s_row_says_what_its_metafile_says() -> None:
    name = "convnextv2-atto_fcmae-pre_3rdparty_in1k"
    entry = ENTRIES[name]
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| [`{name}`]"))
    assert f"({entry['Weights']})" in line and "| 3.7 |" in line and line.endswith("CC-BY-NC-4.0 |")
    assert f"| {entry['Results'][0]['Metrics']['Top 1 Accuracy']:g} |" in line
