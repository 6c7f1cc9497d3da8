"""The site as a whole: its pages, their links and pictures, and the container's packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = sorted(DOCS.glob("*.md"))
LINKED = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("configs/*/README.md")]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)


def leaves(node: Any) -> Iterator[str]:
    """The files of a navigation tree."""
    if isinstance(node, str):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from leaves(child)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S))


def anchors(page: Path) -> set[str]:
    """What the page's headings are linked by, as Python-Markdown and GitHub name them."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    words = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"[-\s]+", "-", word) for word in words}


def test_every_page_is_in_the_navigation_once() -> None:
    files = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.ipynb"))
    assert sorted(leaves(SITE["nav"])) == sorted(files + [page.name for page in PAGES])


def test_the_site_fetches_nothing() -> None:
    assert SITE["theme"]["font"] is False
    assert all(
        "//" not in file for key in ("extra_css", "extra_javascript") for file in SITE.get(key, ())
    )


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links {link}"
        if page.parent == DOCS:
            assert DOCS in target.parents, f"{page.name} links {link}, which is not on the site"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links {link}"


def test_pictures_are_used() -> None:
    """A picture that no page shows is a forgotten one."""
    text = "".join(page.read_text() for page in LINKED)
    pictures = [path for path in (DOCS / "images").rglob("*.*")]
    assert [path.name for path in pictures if path.relative_to(DOCS).as_posix() not in text] == []


def test_the_container_installs_the_verified_set() -> None:
    """In the order that mmcv needs, on the CUDA that torch was built with."""
    installs = re.findall(r"-r (requirements/\w+\.txt)", INSTRUCTIONS)
    assert installs[:2] == ["requirements/build.txt", "requirements/openmmlab.txt"]
    assert all((ROOT / file).is_file() for file in installs)
    assert "==" not in DOCKERFILE, "versions are in requirements/ alone"
    (cuda,) = re.findall(r"^ARG BASE=nvidia/cuda:(\d+\.\d+)", DOCKERFILE, flags=re.M)
    if torch.version.cuda is not None:
        assert torch.version.cuda == cuda


def test_the_container_has_what_the_set_up_asks_for() -> None:
    asked = re.search(r"apt-get install (.*)", (DOCS / "quick_start.md").read_text())[1].split()
    for package in set(asked) - {"make"}:
        assert package in INSTRUCTIONS.split(), package


def test_the_questions_name_the_verified_mmcv() -> None:
    (pinned,) = re.findall(
        r"^onedl-mmcv==\S+", (ROOT / "requirements/openmmlab.txt").read_text(), re.M
    )
    assert pinned in (DOCS / "faq.md").read_text()
