"""What importing costs: torch alone for the plain modules, and nothing of OpenMMLab on the way."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmconvnextv2

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]

TRAIN_ONE_STEP = """
import mmconvnextv2
from mmconvnextv2.nn import FCMAE, random_masking

arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])
model = FCMAE.build(arch, decoder_channels=16)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
before = [parameter.clone() for parameter in model.parameters()]
loss = model(torch.randn(2, 3, 64, 64), mask=random_masking(2, (2, 2), 0.5), mode="loss")["loss"]
loss.backward()
optimizer.step()
assert torch.isfinite(loss)
assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
"""

# What torch itself loads, also on the first use of an optimizer, is allowed; everything that comes
# later is refused unless it belongs to this package, to the standard library or to torch.
BLOCK_EVERYTHING_ELSE = """
import sys
import torch, torch.utils.checkpoint

torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
allowed = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
allowed |= {"torch", "mmconvnextv2"}
assert not allowed & {"mmengine", "mmcv", "mmpretrain", "mmdet", "mmseg", "timm", "rich", "cv2"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)


sys.meta_path.insert(0, Refuse())
try:
    import mmengine
except ModuleNotFoundError as error:
    assert str(error) == "blocked: mmengine"
else:
    raise AssertionError("the block does not block")
"""

NOTHING_OF_OPENMMLAB = """
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"mmengine", "mmcv", "mmpretrain", "mmdet", "mmseg"}, sorted(loaded)
print("one step done")
"""


def run(*parts: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees this checkout first."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", "\n".join(parts)],
        env=environment,
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_step_runs_where_all_but_torch_is_blocked():
    result = run(BLOCK_EVERYTHING_ELSE, TRAIN_ONE_STEP, NOTHING_OF_OPENMMLAB)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "one step done"


def test_a_step_loads_nothing_of_openmmlab():
    result = run("import sys, torch", TRAIN_ONE_STEP, NOTHING_OF_OPENMMLAB)
    assert result.returncode == 0, result.stderr


def test_checkpoints_load_where_all_but_torch_is_blocked():
    code = """
import mmconvnextv2.checkpoint
import pkgutil, importlib
for module in pkgutil.walk_packages(mmconvnextv2.checkpoint.__path__, "mmconvnextv2.checkpoint."):
    importlib.import_module(module.name)
"""
    result = run(BLOCK_EVERYTHING_ELSE, code, NOTHING_OF_OPENMMLAB)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_is_light():
    """The entry points are named, and their dependencies come with their first use."""
    code = """
import sys
import mmconvnextv2
assert isinstance(mmconvnextv2.__version__, str)
assert {"pretrain", "reconstruct", "list_models"} <= set(dir(mmconvnextv2))
try:
    mmconvnextv2.nothing_of_this_name
except AttributeError as error:
    assert "nothing_of_this_name" in str(error)
else:
    raise AssertionError("an unknown attribute was found")
"""
    result = run(code, NOTHING_OF_OPENMMLAB)
    assert result.returncode == 0, result.stderr


HELP = """
import contextlib, io
from mmconvnextv2.cli.main import COMMANDS, main

for command in COMMANDS:
    if command == "benchmark" and "torch" not in allowed:
        continue  # its help states what the machine has
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main([command, "--help"])
        except SystemExit as end:
            assert end.code == 0
    assert said.getvalue().startswith(f"usage: mmconvnextv2 {command}")
"""


def test_the_help_of_commands_loads_nothing_of_openmmlab():
    result = run(BLOCK_EVERYTHING_ELSE, HELP, NOTHING_OF_OPENMMLAB)
    assert result.returncode == 0, result.stderr


def test_the_help_of_commands_needs_no_torch():
    block = """
import sys
allowed = {"mmconvnextv2", *sys.stdlib_module_names}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Refuse())
"""
    result = run(block, HELP, 'assert "torch" not in sys.modules')
    assert result.returncode == 0, result.stderr


def test_entry_points_are_functions_whatever_was_imported_before():
    """A module of `apis` has the name of its function, which must not hide it."""
    importlib.import_module("mmconvnextv2.apis.pretrain")
    names = set(mmconvnextv2.__all__) - {"__version__"}
    assert len(names) >= 6 and names <= set(dir(mmconvnextv2))
    for name in names:
        assert inspect.isfunction(getattr(mmconvnextv2, name)), name


def test_the_zoo_names_its_models_without_loading_their_libraries():
    code = """
import sys
import mmconvnextv2
assert "convnextv2-atto_fcmae-pre_3rdparty_in1k" in mmconvnextv2.list_models()
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"mmcv", "mmpretrain", "mmdet", "mmseg"}, sorted(loaded)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_importing_models_registers_them_and_importing_nn_does_not():
    code = """
import mmconvnextv2.nn
from mmpretrain.registry import MODELS
names = ["ConvNeXtV2", "FCMAE", "FCMAEDataPreprocessor", "FCMAEDecoder", "FCMAEHead"]
assert not any(name in MODELS.module_dict for name in names)
import mmconvnextv2.models
assert all(name in MODELS.module_dict for name in names)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr
