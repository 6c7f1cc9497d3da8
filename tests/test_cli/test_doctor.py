"""The doctor: what it finds in a whole environment, and what it says of a broken one."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmconvnextv2.apis.doctor import DISTRIBUTIONS, Check, doctor
from mmconvnextv2.cli.main import main

pytestmark = pytest.mark.integration


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two pictures, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        Image.new("RGB", (40, 30), (90 * i, 0, 0)).save(folder / f"{i}.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def check(name: str, **arguments: Path) -> Check:
    (found,) = (c for c in doctor(**arguments) if c.name == name)
    return found


def test_a_whole_environment(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "not" / "there"
    checks = {c.name: c for c in doctor(images, out)}
    assert {"Python", "torch", "torchvision", *DISTRIBUTIONS, "mmcv's ops"} <= checks.keys()
    assert {name for name, c in checks.items() if c.optional} == {
        "GPU",
        "CPU kernels",
        "MinkowskiEngine",
    }
    assert [name for name, c in checks.items() if not (c.ok or c.optional)] == []
    assert checks["torch"].says == torch.__version__
    assert checks["images"].says == "3 images (2 .jpg, 1 .png), 1 of 3 cannot be read"
    assert checks["GPU"].ok == torch.cuda.is_available()
    assert not out.parent.exists() and sorted(tmp_path.iterdir()) == [images]

    assert main(["doctor", "--data", str(images), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:12]] == ["ok"] * 12
    assert lines[-1].startswith(f"next: mmconvnextv2 pretrain --data {images}")


def test_folders_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for data, words in (("empty", "no image in"), ("none", "no image folder"), ("file", "a file")):
        found = check("images", data=tmp_path / data)
        assert not found.ok and not found.optional and words in found.says
    # Not even root may write there.
    for out, words in ((tmp_path / "file" / "run", "is a file"), (Path("/proc/run"), "--out")):
        assert not check("output folder", out=out).ok
        said = check("output folder", out=out).says
        assert words in said and "GB" not in said
    assert main(["doctor", "--data", str(tmp_path / "empty")]) == 1
    said = capsys.readouterr().out
    assert "\nTO DO     images " in said and said.endswith("\nto put right: images\n")


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    found = check("output folder", out=tmp_path)
    assert not found.ok and "1.0 GB are free" in found.says


@pytest.mark.parametrize(
    ("module", "name", "remedy"),
    [
        ("torchvision", "torchvision", "of one release"),
        ("mmcv.ops", "mmcv's ops", "MMCV_WITH_OPS=1"),
        ("mmdet", "mmdet", "mmconvnextv2[openmmlab]"),
        ("mmengine", "mmengine", "mmconvnextv2[openmmlab]"),
    ],
)
def test_what_does_not_import(
    module: str, name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = check(name)
    assert not found.ok and not found.optional and remedy in found.says


def test_an_operator_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def broken(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    assert not check("torchvision").ok


def test_versions_that_refuse_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mmdet does, with an AssertionError while it is imported."""

    class Refuse:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "mmdet":
                raise AssertionError("MMCV==9.0 is used but incompatible.")

    monkeypatch.delitem(sys.modules, "mmdet", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    found = check("mmdet")
    assert not found.ok and found.says.startswith(
        "MMCV==9.0 is used but incompatible.: pip install"
    )


def test_python_and_torch_of_other_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.3.1+cpu")
    found = check("torch")
    assert not found.ok and "2.4 or newer" in found.says
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    assert not check("Python").ok


MAINTAINED = {
    "onedl-mmengine": "0.10.12",
    "onedl-mmcv": "2.3.6",
    "onedl-mmpretrain": "1.3.6",
    "onedl-mmdetection": "3.5.1",
    "onedl-mmsegmentation": "1.4.2",
}


@pytest.mark.parametrize(
    ("changes", "name", "ok", "words"),
    [
        ({}, "OpenMMLab set", True, "the verified versions"),
        ({"mmcv-lite": "2.1.0"}, "mmcv", False, "overwritten each other"),
        ({"onedl-mmdetection": "", "mmdet": "3.3.0"}, "OpenMMLab set", False, "a mixture"),
        ({"onedl-mmengine": ""}, "OpenMMLab set", False, "mmengine not installed: pip install"),
        (
            {"onedl-mmdetection": "3.9.9"},
            "OpenMMLab set",
            True,
            "works, not verified with onedl-mmdetection 3.9.9 (verified: 3.5.1)",
        ),
    ],
)
def test_sets_of_packages(
    changes: dict[str, str], name: str, ok: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(distribution: str) -> str:
        found = (MAINTAINED | changes).get(distribution)
        if not found:
            raise importlib.metadata.PackageNotFoundError(distribution)
        return found

    pins = [f'{name}=={version}; extra == "openmmlab"' for name, version in MAINTAINED.items()]
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["torch>=2.4", *pins])
    found = check(name)
    assert found.ok == ok and words in found.says
