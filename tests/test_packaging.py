"""Wheel, source archive and editable install bring configs, tools and index along, in `.mim/`.

And the command `mmconvnextv2` of an installed wheel does all it can do, in an empty folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("mmconvnextv2", "configs", "tools", "requirements")
PIP = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--quiet")

# Without `site`, nothing of this environment is visible, its own editable install included. The
# folder under test comes first, and the environment's packages after it, for the zoo's imports.
LOOK = """
import site, sys
sys.path[:0] = sys.argv[1:2]
site.addsitedir(sys.argv[1])
import mmconvnextv2
print(mmconvnextv2.__file__)
sys.path += sys.argv[2:]
from mmconvnextv2.apis.configs import config_path, resource_root
from mmconvnextv2.apis.zoo import find_model, list_models
print(resource_root())
print(config_path("fcmae/fcmae_convnextv2-atto_64xb64-coslr-800e_in1k.py"))
print(len(list_models()), find_model("convnextv2-atto_fcmae-pre_3rdparty_in1k").config.is_file())
"""


# All commands in one process, since the libraries take longer to import than the work does.
DO = """
import shlex, sys
sys.modules["gradio"] = None  # the demo would serve until it is interrupted
import mmconvnextv2
from mmconvnextv2.cli.main import main
from mmconvnextv2.datasets import sample_set
sample_set.build_sample_set(
    "data",
    tasks=("pretrain", "detection"),
    pretrain=sample_set.PretrainSpec(num_train=8),
    detection=sample_set.DetectionSpec(num_train=4, num_val=2),
)
print(mmconvnextv2.__file__)
for line in sys.argv[1:]:
    print("exit", main(shlex.split(line)), line, flush=True)
"""

SMALL = "--num-workers 0 --batch-size 4 --epochs 1"
LINES = {
    "doctor --data data/pretrain --out runs": 0,
    f"pretrain --data data/pretrain --out runs/pre --arch atto --image-size 64 {SMALL}": 0,
    "reconstruct --images data/pretrain --checkpoint runs/pre --out grid.png --num-images 1": 0,
    "finetune --task detection --data data/detection --init runs/pre --out runs/det "
    f"--image-size 64 {SMALL}": 0,
    "predict --images data/detection/val --checkpoint runs/det --out found --score 0": 0,
    "report runs/det": 0,
    "demo --runs runs": 2,
    "convert runs/pre/epoch_1.pth timm.safetensors --to timm": 0,
    "benchmark dataload --count 2 --repeat 1 --only ours --json speed.json": 0,
}
"""Command lines of every command, and their exit codes."""

WRITTEN = (
    *("runs/pre/epoch_1.pth", "runs/pre/config.py", "grid.png", "runs/det/epoch_1.pth"),
    *("runs/det/config.py", "found/predictions.json", "runs/det/report.html", "timm.safetensors"),
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that nothing is built inside the real ones."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", ".mim", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def target(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed wheel."""
    folder = tmp_path_factory.mktemp("install") / "target"
    command = (sys.executable, "-m", "pip", "install", *PIP, "--target", folder, checkout)
    run(*command, cwd=folder.parent)
    return folder


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    environment |= variables
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files(folder: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern)}


def check_mim(mim: Path) -> None:
    """All configs, scripts and metafiles of the checkout are there, byte for byte."""
    expected = {"model-index.yml"}
    for name, patterns in dict(
        configs=("*.py", "*.yml", "README.md"), tools=("*.py", "*.sh")
    ).items():
        for pattern in patterns:
            expected |= {f"{name}/{path}" for path in files(ROOT / name, pattern)}
    assert len(expected) > 100
    for path in expected:
        assert (mim / path).read_bytes() == (ROOT / path).read_bytes()


def check_import(packages: Path, package: Path, tmp_path: Path) -> None:
    """Run outside of any checkout, the installed package finds its own resources."""
    environment = [path for path in sys.path if path.endswith("site-packages")]
    said = run(sys.executable, "-S", "-c", LOOK, packages, *environment, cwd=tmp_path).split("\n")
    assert said[0] == str(package / "__init__.py")
    assert said[1] == str(package / ".mim")
    assert said[2].startswith(str(package / ".mim" / "configs"))
    number, is_file = said[3].split()
    configs = [p for p in (ROOT / "configs").glob("*/*.py") if p.parent.name != "_base_"]
    assert int(number) > len(configs) and is_file == "True"


def test_wheel(target: Path, tmp_path: Path) -> None:
    check_mim(target / "mmconvnextv2" / ".mim")
    check_import(target, target / "mmconvnextv2", tmp_path)


def test_every_command_of_a_wheel(target: Path, tmp_path: Path) -> None:
    """The environment's own editable install comes after PYTHONPATH."""
    path = dict(PYTHONPATH=str(target))
    assert run(target / "bin" / "mmconvnextv2", "--version", cwd=tmp_path, **path).strip()
    said = run(sys.executable, "-c", DO, *LINES, cwd=tmp_path, **path).splitlines()
    assert str(target / "mmconvnextv2" / "__init__.py") in said
    codes = [line.split(maxsplit=2)[1:] for line in said if line.startswith("exit ")]
    assert codes == [[str(code), line] for line, code in LINES.items()], "\n".join(said)
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert figures["command"] == f"mmconvnextv2 {list(LINES)[-1]}"
    for name in WRITTEN:
        assert (tmp_path / name).stat().st_size > 0, name
    assert list((tmp_path / "found").glob("*.png"))
    assert any(line.startswith("next: mmconvnextv2 reconstruct") for line in said)


def test_editable_install(checkout: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    # --ignore-installed: what this environment has under the same name stays as it is.
    options = (*PIP, "--ignore-installed", "--prefix", prefix, "--editable", checkout)
    run(sys.executable, "-m", "pip", "install", *options, cwd=tmp_path)
    (packages,) = prefix.rglob("site-packages")
    mim = checkout / "mmconvnextv2" / ".mim"
    check_mim(mim)
    assert not (packages / "mmconvnextv2").exists(), "not a copy"
    config = checkout / "configs" / "fcmae" / "new.py"
    config.write_text("_base_ = '../_base_/fcmae.py'\n")
    assert (mim / "configs" / "fcmae" / "new.py").is_file(), "the links follow the checkout"
    config.unlink()
    check_import(packages, checkout / "mmconvnextv2", tmp_path)


def test_source_archive_builds_the_same_wheel(checkout: Path, tmp_path: Path) -> None:
    build = "from setuptools import build_meta; build_meta.build_{}({!r})"
    archives, wheels = tmp_path / "archives", tmp_path / "wheels"
    run(sys.executable, "-c", build.format("sdist", str(archives)), cwd=checkout)
    (archive,) = archives.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    run(sys.executable, "-c", build.format("wheel", str(wheels)), cwd=unpacked)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "content")
    check_mim(tmp_path / "content" / "mmconvnextv2" / ".mim")


def test_a_stale_build_leaves_nothing_behind(checkout: Path, tmp_path: Path) -> None:
    """Setuptools keeps build/ between builds; a config that was removed must not come back."""
    gone = checkout / "configs" / "fcmae" / "gone.py"
    build = "from setuptools import build_meta; build_meta.build_wheel({!r})"
    gone.write_text("")
    run(sys.executable, "-c", build.format(str(tmp_path / "first")), cwd=checkout)
    gone.unlink()
    run(sys.executable, "-c", build.format(str(tmp_path / "second")), cwd=checkout)
    (wheel,) = (tmp_path / "second").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mmconvnextv2/.mim/configs/fcmae/metafile.yml" in names
    assert "mmconvnextv2/.mim/configs/fcmae/gone.py" not in names
