"""The page of published results: up to date, complete, and every config it names exists."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from mmengine.config import Config

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
DATA = yaml.safe_load((ROOT / "docs/data/published_results.yml").read_text())
SIZES = dict(A="atto", F="femto", P="pico", N="nano", T="tiny", B="base", L="large", H="huge")


def tool() -> ModuleType:
    path = ROOT / "tools/analysis_tools/make_results_page.py"
    spec = importlib.util.spec_from_file_location("make_results_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def our_rows() -> list[tuple[str, dict]]:
    return [(table["title"], row) for table in DATA["tables"] for row in table["rows"]]


def test_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert page == tool().render(DATA, CONFIGS), "run tools/analysis_tools/make_results_page.py"


def test_every_named_config_exists() -> None:
    named = {row[key] for _, row in our_rows() for key in ("config", "init") if key in row}
    named |= {
        row["config"] for group in DATA["complexity"] for row in group["rows"] if "config" in row
    }
    named |= set(DATA["fcmae"])
    assert len(named) > 40
    assert [name for name in sorted(named) if not (CONFIGS / name).is_file()] == []


def test_a_config_has_the_architecture_of_its_row() -> None:
    for title, row in our_rows():
        model = next((str(cell) for cell in row["of"] if "ConvNeXt V" in str(cell)), None)
        if model is None or "config" not in row:
            continue
        version, size = model.split()[1].split("-")
        for key in ("config", "init"):
            stem = f"convnext{dict(V1='-v1', V2='v2')[version]}-{SIZES[size]}_"
            if key in row:
                assert stem in row[key], (title, row)


def test_a_row_starts_from_what_its_config_loads_unless_it_has_a_star() -> None:
    loaded = {}
    for title, row in our_rows():
        if "config" not in row:
            continue
        if row["config"] not in loaded:
            backbone = Config.fromfile(CONFIGS / row["config"]).model.backbone
            checkpoint = (backbone.get("init_cfg") or {}).get("checkpoint")
            loaded[row["config"]] = checkpoint and Path(checkpoint).parent.name
        start = Path(row["init"]).stem if "init" in row else None
        assert (loaded[row["config"]] != start) == row.get("override", False), (title, row)


def test_each_row_of_ours_has_a_config() -> None:
    """Sup and FCMAE rows of V2 in the main tables, which the recipes are there to reproduce."""
    for table in DATA["tables"]:
        if table["source"].startswith(
            ("ConvNeXt V2 paper, table 14", "ConvNeXt V2 paper, table 6")
        ):
            for row in table["rows"]:
                if row["of"][0].startswith("ConvNeXt V2"):
                    assert "config" in row, row


def test_published_figures_are_plausible() -> None:
    for title, row in our_rows():
        for value in row["published"]:
            assert value is None or 30 < value < 100, (title, row)


def test_every_row_is_on_the_page_and_measured_is_empty_until_run() -> None:
    data = copy.deepcopy(DATA)
    before = tool().render(data, CONFIGS)
    assert before.count("\n| ") == sum(len(table["rows"]) + 2 for table in data["tables"])
    assert "| measured |" in before
    row = data["tables"][0]["rows"][2]
    assert row["of"] == ["ConvNeXt V2-A", "FCMAE"] and "measured" not in row
    row["measured"] = [76.5]
    after = tool().render(data, CONFIGS)
    changed = [
        (old, new)
        for old, new in zip(before.splitlines(), after.splitlines(), strict=True)
        if old != new
    ]
    assert len(changed) == 1
    old, new = ([cell.strip() for cell in line.split("|")] for line in changed[0])
    assert old[3:5] == ["76.7", ""] and new[3:5] == ["76.7", "76.5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(config="nowhere/else.py"), "there is no config"),
        (dict(published=[1.0, 2.0]), "`published` needs one entry"),
        (dict(measured=[]), "`measured` needs one entry"),
        (dict(top1=76.7), "has the keys"),
    ],
)
def test_bad_rows_are_refused(change: dict, message: str) -> None:
    data = dict(tables=copy.deepcopy(DATA["tables"][:1]))
    data["tables"][0]["rows"] = data["tables"][0]["rows"][2:3]
    data["tables"][0]["rows"][0].update(change)
    with pytest.raises(ValueError, match=message):
        tool().render(data, CONFIGS)


def test_measured_needs_a_config() -> None:
    data = copy.deepcopy(DATA)
    data["tables"][0]["rows"][0]["measured"] = [75.0]
    with pytest.raises(ValueError, match="belong to rows with a `config`"):
        tool().render(data, CONFIGS)


def test_failure_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "results.md"
    assert tool().main(["--configs", str(tmp_path), "--out", str(out)]) == 1
    assert "there is no config" in capsys.readouterr().err
    assert not out.exists()
