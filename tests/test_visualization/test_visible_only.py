"""The drawing of visible-only encoding shows the mask, and only what the mask leaves."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmconvnextv2.nn import random_masking
from mmconvnextv2.visualization.visible_only import draw_visible_only

pytestmark = pytest.mark.unit

SVG = "{http://www.w3.org/2000/svg}"
MASK_HW = random_masking(1, (7, 7), 0.6, generator=torch.Generator().manual_seed(0))[0]


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def parts() -> list[ElementTree.Element]:
    root = ElementTree.fromstring(draw_visible_only(picture(), MASK_HW))
    return [child for child in root if child.tag == f"{SVG}g"]


def cells_shown(part: ElementTree.Element) -> list[tuple[int, int]]:
    """Row and column of the pieces of the photograph, in the order of the file."""
    boxes = [element.get("viewBox") for element in part.iter(f"{SVG}svg")]
    return [(int(box.split()[1]) // 32, int(box.split()[0]) // 32) for box in boxes]


def test_visible_cells_are_shown_and_numbered_row_by_row(parts: list[ElementTree.Element]) -> None:
    visible = [(r, c) for r in range(7) for c in range(7) if not MASK_HW[r, c]]
    assert len(visible) == 19
    assert cells_shown(parts[0]) == visible
    assert cells_shown(parts[1]) == visible
    texts = [text for element in parts[1].iter(f"{SVG}tspan") if (text := element.text or "")]
    assert [int(text) for text in texts if text.isdigit()] == [2, *range(19)], "heading, then cells"
    assert "19 of 49" in "".join(parts[0].itertext())


def test_the_decoder_predicts_what_was_removed(parts: list[ElementTree.Element]) -> None:
    removed = [(r, c) for r in range(7) for c in range(7) if MASK_HW[r, c]]
    assert cells_shown(parts[3])[19:] == removed


@pytest.mark.parametrize("seed", range(5))
def test_the_kernel_meets_a_visible_and_a_removed_cell(seed: int) -> None:
    mask_HW = random_masking(1, (7, 7), 0.6, generator=torch.Generator().manual_seed(seed))[0]
    root = ElementTree.fromstring(draw_visible_only(picture(), mask_HW))
    (row, column), right, *_ = cells_shown([child for child in root if child.tag == f"{SVG}g"][2])
    assert right == (row, column + 1)
    assert mask_HW[row + 1, column]


def test_the_file_needs_nothing_else() -> None:
    text = draw_visible_only(picture().resize((50, 90)), MASK_HW)
    (data,) = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', text)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (224, 224)
    assert set(re.findall(r'href="([^"]{4})', text)) == {"data", "#pho"}


def test_bad_masks() -> None:
    with pytest.raises(ValueError, match="at most 7 x 7"):
        draw_visible_only(picture(), MASK_HW[None])
    alone = torch.ones(2, 2, dtype=torch.bool)
    alone[1, 1] = False
    with pytest.raises(ValueError, match="another seed"):
        draw_visible_only(picture(), alone)


def test_the_shipped_drawing_is_the_tool_s() -> None:
    """Texts and cells; the bytes of its JPEG may differ between versions of Pillow."""
    shipped = (Path(__file__).parents[2] / "docs/images/visible_only.svg").read_text()
    now = draw_visible_only(picture(), MASK_HW)
    data = re.compile(r"base64,[^\"]+")
    assert data.sub("", shipped) == data.sub("", now)
