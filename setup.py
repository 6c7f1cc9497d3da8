"""Packaging of mmconvnextv2; the requirement groups live in requirements/."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
EXTRAS = ("openmmlab", "classic", "minkowski", "tests", "docs", "optional")


def read_version() -> str:
    """Version of the package, without importing it (and so without torch)."""
    text = (ROOT / "mmconvnextv2" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('mmconvnextv2/version.py has no line `__version__ = "..."`')
    return found.group(1)


def read_requirements(group: str) -> list[str]:
    """Requirement lines of requirements/<group>.txt, without comments."""
    lines = (ROOT / "requirements" / f"{group}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def read_readme() -> str:
    """README.md, or an empty text in a checkout that has none."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


if __name__ == "__main__":
    setup(
        name="mmconvnextv2",
        version=read_version(),
        description="ConvNeXt V2 and FCMAE for OpenMMLab: one backbone that takes a mask",
        long_description=read_readme(),
        long_description_content_type="text/markdown",
        author="The mmconvnextv2 authors",
        license="Apache-2.0",
        packages=find_packages(include=["mmconvnextv2", "mmconvnextv2.*"]),
        package_data={"mmconvnextv2": ["py.typed"]},
        python_requires=">=3.10",
        install_requires=read_requirements("runtime"),
        extras_require={group: read_requirements(group) for group in EXTRAS},
        zip_safe=False,
    )
