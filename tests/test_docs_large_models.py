"""The page on Huge: its table is what is estimated, its snippet a config, its command a recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from mmengine.config import Config

from mmconvnextv2.analysis import gpu_memory
from mmconvnextv2.analysis.gpu_memory import GpuMemory, estimate_memory

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
FCMAE = ROOT / "configs" / "fcmae"
PAGE = (ROOT / "docs" / "large_models.md").read_text()
WRAPPERS = {"fp32": "OptimWrapper", "bf16": "AutocastOptimWrapper"}
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.search(r"\| (fp32|bf16) \|", line)
]


def estimate(row: list[str]) -> GpuMemory:
    name, gpus, precision = row[:3]
    config = Config.fromfile(FCMAE / name)
    config.optim_wrapper.type = WRAPPERS[precision]
    return estimate_memory(config, int(gpus))


def in_gb(*counts: int) -> list[str]:
    return [f"{count / 1e9:.1f}" for count in counts]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}-{row[2]}" for row in ROWS])
def test_what_lasts(row: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_memory, "activation_bytes", lambda config, batch: 0)
    memory = estimate(row)
    assert row[3:6] == in_gb(memory.parameters, memory.gradients, memory.optimizer)
    assert float(row[7]) == pytest.approx(memory.total / 1e9 + float(row[6]), abs=0.11)


@pytest.mark.slow
def test_activations_of_the_smallest_row() -> None:
    row = min(ROWS, key=lambda row: float(row[7]))
    memory = estimate(row)
    assert row[6:] == in_gb(memory.activations, memory.total)


def test_the_table_has_every_recipe_of_the_page_in_both_precisions() -> None:
    recipes = set(re.findall(r"fcmae_convnextv2-huge\S*?\.py", PAGE))
    assert {(row[0], row[2]) for row in ROWS} == {(n, p) for n in recipes for p in WRAPPERS}
    assert "fcmae_convnextv2-huge_64xb64-cp-zero-coslr-1600e_in1k.py" in recipes


def test_the_snippet_is_a_config(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    (base,) = re.findall(r'_base_ = "(.*?)"', snippet)
    path = tmp_path / "child.py"
    path.write_text(snippet.replace(base, str(ROOT / "configs" / "convnextv2" / base)))
    child, parent = Config.fromfile(path), Config.fromfile(ROOT / "configs" / "convnextv2" / base)
    shared, plain = child.optim_wrapper.optimizer, parent.optim_wrapper.optimizer
    assert (shared.pop("type"), shared.pop("optimizer_type")) == ("ShardedOptimizer", plain.type)
    assert {**shared, "type": plain.type} == plain.to_dict()
    assert dict(type="ConsolidateOptimizerHook") in child.custom_hooks
    assert child.model.backbone == dict(parent.model.backbone, with_cp=True)


def test_the_commands_name_what_is_there() -> None:
    block, *_ = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    script, path, gpus, option, setting = shlex.split(block.replace("\\\n", " "))
    assert (ROOT / script).is_file() and option == "--cfg-options"
    config = Config.fromfile(ROOT / path)
    accumulated = int(setting.removeprefix("optim_wrapper.accumulative_counts="))
    images = int(gpus) * config.train_dataloader.batch_size * accumulated
    assert images == config.auto_scale_lr.base_batch_size
    for file in re.findall(r"(?:configs|tools)/\S+\.(?:py|sh)", PAGE):
        assert (ROOT / file).is_file(), file
