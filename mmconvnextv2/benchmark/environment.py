"""What a measurement depends on besides the code: machine, versions, threads."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mmconvnextv2.version import __version__

PEERS = {
    "timm": ("timm",),
    "transformers": ("transformers",),
    "mmpretrain": ("onedl-mmpretrain", "mmpretrain"),
    "mmcv": ("onedl-mmcv", "mmcv"),
    "MinkowskiEngine": ("MinkowskiEngine",),
    "triton": ("triton",),
    "pillow": ("pillow",),
    "opencv": ("opencv-python-headless", "opencv-python"),
}
"""Packages whose versions matter, and the distributions that may hold them."""


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Machine and software, as JSON takes them.

    Args:
        device: where the measurement runs; its name is looked up.
    """
    cuda = device.type == "cuda"
    return dict(
        mmconvnextv2=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        device=str(device),
        gpu=torch.cuda.get_device_name(device) if cuda else None,
        tf32=torch.backends.cuda.matmul.allow_tf32,
        peers={name: installed_version(names) for name, names in PEERS.items()},
    )


def cpu_name() -> str:
    """Name of the processor, as well as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed_version(distributions: tuple[str, ...]) -> str | None:
    """Version of the first of these distributions that is installed, with its name; or None."""
    for name in distributions:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None
