"""Packaging of mmconvnextv2; the requirement groups live in requirements/."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ("configs", "tools", "model-index.yml")
EXTRAS = ("openmmlab", "classic", "minkowski", "web", "tests", "docs", "optional")


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


class BuildPyWithMim(build_py):
    """Adds `mmconvnextv2/.mim`, where mim and mmconvnextv2.apis look for configs and tools.

    A wheel gets copies. An editable install gets links in the checkout, so that they stay current.
    """

    def run(self) -> None:
        """Build as usual, then fill `.mim`."""
        super().run()
        base = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        mim = base / "mmconvnextv2" / ".mim"
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in MIM:
            source = ROOT / name
            if self.editable_mode:
                (mim / name).symlink_to(Path("..", "..", name))
            elif source.is_dir():
                shutil.copytree(source, mim / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, mim)


if __name__ == "__main__":
    setup(
        name="mmconvnextv2",
        version=read_version(),
        description="ConvNeXt V2 and FCMAE for OpenMMLab: one backbone that takes a mask",
        long_description=read_readme(),
        long_description_content_type="text/markdown",
        author="The mmconvnextv2 authors",
        license="Apache-2.0",
        cmdclass={"build_py": BuildPyWithMim},
        packages=find_packages(include=["mmconvnextv2", "mmconvnextv2.*"]),
        package_data={"mmconvnextv2": ["py.typed", "nn/native/*.cpp"]},
        python_requires=">=3.10",
        entry_points={"console_scripts": ["mmconvnextv2 = mmconvnextv2.cli.main:main"]},
        install_requires=read_requirements("runtime"),
        extras_require={group: read_requirements(group) for group in EXTRAS},
        zip_safe=False,
    )
