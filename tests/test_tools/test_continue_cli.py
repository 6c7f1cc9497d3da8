"""The command line of continued pre-training: what it passes on, and how it fails."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmconvnextv2.apis.continue_pretraining import continue_pretraining
from mmconvnextv2.apis.settings import settings_table

pytestmark = pytest.mark.unit

TOOL = Path(__file__).parents[2] / "tools" / "continue_pretraining.py"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("continue_pretraining_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arguments_arrive(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    @functools.wraps(continue_pretraining)
    def record(**arguments: object) -> Path:
        calls.append(arguments)
        return Path("out/epoch_3.pth")

    monkeypatch.setattr(tool, "continue_pretraining", record)
    arguments = ["scans", "--init", "a.pth", "--in-channels", "1", "--no-data", "-1", "--amp"]
    monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
    assert tool.main() == 0
    given = dict(data="scans", init="a.pth", in_channels=1, no_data=-1.0, amp=True)
    parameters = inspect.signature(continue_pretraining).parameters
    rest = {name: p.default for name, p in parameters.items() if name not in given}
    assert calls[0] == given | rest
    assert "continued weights: out/epoch_3.pth" in capsys.readouterr().out


def test_help_has_the_table(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--help"])
    with pytest.raises(SystemExit):
        tool.main()
    assert settings_table() in capsys.readouterr().out


def test_a_missing_checkpoint_is_one_line(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(
        sys, "argv", [str(TOOL), str(tmp_path), "--init", str(tmp_path / "none.pth")]
    )
    assert tool.main() == 2
    message = capsys.readouterr().err
    assert message.startswith("continue_pretraining.py: ") and message.count("\n") == 1
    assert "none.pth" in message
