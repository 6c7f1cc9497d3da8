"""What this machine and environment have of what the project needs, and what to do about the rest.

Nothing but the standard library is imported before the check that is about it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
OLDEST_TORCH = (2, 4)

DISTRIBUTIONS = {
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmpretrain": ("onedl-mmpretrain", "mmpretrain"),
    "mmdet": ("onedl-mmdetection", "mmdet"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
}
"""OpenMMLab's packages as they are imported, and the distributions that may hold each."""

FREE_GB_NEEDED = 2.0
"""Room for the checkpoints that a run of Tiny keeps, three of 0.4 GB, with one being written."""

INSTALL_TORCH = "pip install torch torchvision, both of one release"
INSTALL_OPENMMLAB = "pip install --no-build-isolation 'mmconvnextv2[openmmlab]', after torch"
INSTALL_OPS = (
    "compile it against the installed torch: MMCV_WITH_OPS=1 pip install --no-build-isolation "
    "--no-cache-dir --force-reinstall --no-deps onedl-mmcv"
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        ok: it is there and works.
        optional: everything but what is called by its name runs without it.
        says: what was found; where that is not ok, with what to do.
    """

    name: str
    ok: bool
    optional: bool
    says: str


def doctor(
    data: str | os.PathLike[str] | None = None, out: str | os.PathLike[str] = "."
) -> list[Check]:
    """Check what training and fine-tuning need.

    Args:
        data: folder of images to look at; None leaves it out.
        out: folder that a run is to write to; it need not exist, and nothing is left in it.

    Returns:
        The checks, in the order in which to put right what is not ok.
    """
    checks = [
        _check("Python", _python, "install one of these"),
        _check("torch", _torch, INSTALL_TORCH),
        _check("torchvision", _torchvision, INSTALL_TORCH),
        *(
            _check(package, partial(_openmmlab, package), INSTALL_OPENMMLAB)
            for package in DISTRIBUTIONS
        ),
        _check("mmcv's ops", _mmcv_ops, INSTALL_OPS),
        _check("OpenMMLab set", _openmmlab_set, INSTALL_OPENMMLAB),
        _check("output folder", partial(_output_folder, Path(out)), "name another (--out)"),
    ]
    if data is not None:
        checks.append(_check("images", partial(_images, Path(data)), "name another (--data)"))
    return [
        *checks,
        _check("GPU", _gpu, "without one everything runs on the CPU", optional=True),
        _check("CPU kernels", _kernels, "apt-get install g++; without, slower", optional=True),
        _check(
            "MinkowskiEngine",
            _minkowski,
            "only mask_layout='minkowski' needs it, of which 'packed' is the equal",
            optional=True,
        ),
    ]


def _check(name: str, look: Callable[[], str], remedy: str, *, optional: bool = False) -> Check:
    """Look at one thing; whatever a broken installation raises is what is found."""
    try:
        # Imports that succeed have much to say that is not for here.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                return Check(name, True, optional, look())
    except Exception as error:
        found = " ".join(str(error).split()) or type(error).__name__
        return Check(name, False, optional, f"{found}: {remedy}")


def _python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        raise RuntimeError(f"{version}, and the project needs 3.10, 3.11 or 3.12")
    return version


def _torch() -> str:
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise RuntimeError(f"{torch.__version__}, and the project needs 2.4 or newer")
    return torch.__version__


def _torchvision() -> str:
    import torch
    import torchvision

    # Built for another torch, it imports, and lacks its operators.
    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    return torchvision.__version__


def _openmmlab(package: str) -> str:
    installed = _installed(package)
    if len(installed) > 1:
        names = " ".join(installed)
        raise RuntimeError(
            f"{' and '.join(installed)} are both installed and have overwritten each other "
            f"(pip uninstall {names}, then install one)"
        )
    # The packages refuse each other's versions when they are imported.
    module = importlib.import_module(package)
    return " ".join([*installed, module.__version__])


def _mmcv_ops() -> str:
    import torch
    from mmcv.ops import get_compiling_cuda_version, nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    cuda = get_compiling_cuda_version()
    if cuda[:1].isdigit():
        return f"compiled, with CUDA {cuda}"
    if torch.cuda.is_available():
        return "compiled for the CPU only: detection does not train on this machine's GPU"
    return "compiled for the CPU"


def _openmmlab_set() -> str:
    found = {name: v for package in DISTRIBUTIONS for name, v in _installed(package).items()}
    if missing := [package for package in DISTRIBUTIONS if not _installed(package)]:
        raise RuntimeError(f"{', '.join(missing)} not installed")
    if len({name.startswith("onedl-") for name in found}) > 1:
        raise RuntimeError(f"a mixture of maintained and classic packages ({', '.join(found)})")
    verified = _verified_versions()
    others = [
        f"{name} {version} (verified: {verified[name]})"
        for name, version in found.items()
        if verified.get(name, version) != version
    ]
    return f"works, not verified with {', '.join(others)}" if others else "the verified versions"


def _installed(package: str) -> dict[str, str]:
    """Versions of the installed distributions that hold a package."""
    versions = {}
    for name in DISTRIBUTIONS[package]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _verified_versions() -> dict[str, str]:
    """Versions that this project pins in its extras; none where it is not installed."""
    try:
        requirements = importlib.metadata.requires("mmconvnextv2") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pins = (re.match(r"([\w-]+)==([\w.]+)", line) for line in requirements)
    return {pin[1]: pin[2] for pin in pins if pin}


def _output_folder(out: Path) -> str:
    out = out.expanduser().absolute()
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file")
    with tempfile.TemporaryFile(dir=there):
        free_gb = shutil.disk_usage(there).free / 1e9
    if free_gb < FREE_GB_NEEDED:
        raise OSError(f"{free_gb:.1f} GB are free in {there}, a run needs {FREE_GB_NEEDED:g} GB")
    return f"{out} can be written, {free_gb:.0f} GB are free"


def _images(data: Path) -> str:
    from mmconvnextv2.datasets.image_scan import (
        choose_headers,
        count_suffixes,
        describe_bad,
        find_bad_headers,
        resolve_folder,
        scan_folder,
    )
    from mmconvnextv2.datasets.shard_index import Shards, is_sharded

    folder = resolve_folder(data)
    if is_sharded(folder):
        return f"{len(Shards(folder)):,} images in tar shards"
    paths = scan_folder(folder).images
    looked_at = choose_headers(paths)
    bad = find_bad_headers(looked_at)
    if len(bad) == len(looked_at):
        raise ValueError(f"none of {len(paths):,} files can be read\n{describe_bad(bad)}")
    found = f"{len(paths):,} images ({count_suffixes(paths)})"
    return f"{found}, {len(bad):,} of {len(looked_at):,} cannot be read" if bad else found


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} finds none that it can use")
    gpu = torch.cuda.get_device_properties(0)
    precision = "with" if torch.cuda.is_bf16_supported() else "without"
    count = torch.cuda.device_count()
    return f"{count} x {gpu.name}, {gpu.total_memory / 1e9:.0f} GB, {precision} bf16"


def _kernels() -> str:
    from mmconvnextv2.nn.native.compiler import compile_library

    native = Path(importlib.import_module("mmconvnextv2.nn.native").__file__ or "")
    compile_library(native.with_name("kernels.cpp"))
    return "compiled"


def _minkowski() -> str:
    if importlib.util.find_spec("MinkowskiEngine") is None:
        raise RuntimeError("not installed")
    from mmconvnextv2.nn.layouts.minkowski import import_engine

    return import_engine().__version__
