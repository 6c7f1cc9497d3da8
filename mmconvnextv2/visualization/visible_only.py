"""Draws how FCMAE computes on visible cells alone, from a mask and the plan that the network uses.

Shape suffixes: H and W the grid of cells, M visible cells. Lengths are SVG units: the drawing is
640 wide, so that its text can still be read on a phone.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageOps
from torch import Tensor

from mmconvnextv2.nn.cells import CELL_SIZE, STAGE_SIDES, VisibleCells

WIDTH = 640
_MARGIN = 32
_INK, _QUIET, _ACCENT, _REMOVED, _TOKEN = "#1c2430", "#5b6675", "#1f4e8c", "#d5dae1", "#d08a1d"
_REACH = 3  # positions to each side of a 7x7 kernel's centre

Cell = tuple[int, int]
"""Row and column of a cell."""


@dataclass(frozen=True)
class _Scene:
    """What is drawn: the mask's grid, and its visible cells in the order of the plan."""

    height: int
    width: int
    visible: list[Cell]

    @property
    def cells(self) -> list[Cell]:
        """All cells, row by row."""
        return [(row, column) for row in range(self.height) for column in range(self.width)]


def draw_visible_only(image: Image.Image, mask_HW: Tensor) -> str:
    """Draw mask, packed cells, the look across cells, and the decoder, one below the other.

    Args:
        image: any picture; it is cropped to the grid.
        mask_HW: bool ``(H, W)`` of at most 7 x 7 cells, True = removed.

    Returns:
        The text of an SVG file that holds all it needs.

    Raises:
        ValueError: the mask is no mask, is larger than that, or has nowhere a visible cell with a
            removed one beside it and below it, which the third part shows.
    """
    if mask_HW.dim() != 2 or max(mask_HW.shape) > 7:
        raise ValueError(f"a mask of at most 7 x 7 cells can be drawn, got {tuple(mask_HW.shape)}")
    plan = VisibleCells.from_mask(mask_HW[None])
    height, width = mask_HW.shape
    scene = _Scene(
        height, width, list(zip(plan.row_M.tolist(), plan.column_M.tolist(), strict=True))
    )
    parts = (_mask_part, _packed_part, _depthwise_part, _decoder_part)
    body, y = [], 0
    for part in parts:
        drawn, used = part(scene)
        body.append(f'<g transform="translate(0 {y})">{drawn}</g>')
        y += used
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
        'font-family="system-ui, sans-serif">'
        f"<title>How visible-only encoding works</title>{_picture(image, scene)}"
        f'<rect width="{WIDTH}" height="{y}" rx="14" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def _picture(image: Image.Image, scene: _Scene) -> str:
    size = (scene.width * CELL_SIZE, scene.height * CELL_SIZE)
    buffer = io.BytesIO()
    ImageOps.fit(image.convert("RGB"), size).save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<defs><image id="photo" width="{size[0]}" height="{size[1]}" '
        f'href="data:image/jpeg;base64,{data}"/></defs>'
    )


def _text(x: float, y: float, *lines: str, size: int = 20, fill: str = _INK, more: str = "") -> str:
    spans = "".join(
        f'<tspan x="{x}" dy="{size * 1.35 if i else 0}">{escape(line)}</tspan>'
        for i, line in enumerate(lines)
    )
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" {more}>{spans}</text>'


def _heading(number: int, title: str) -> str:
    circle = f'<circle cx="{_MARGIN + 16}" cy="40" r="17" fill="{_ACCENT}"/>'
    middle = 'text-anchor="middle" font-weight="700"'
    return (
        circle
        + _text(_MARGIN + 16, 47, str(number), fill="#fff", more=middle)
        + _text(_MARGIN + 44, 48, title, size=24, more='font-weight="700"')
    )


def _crop(cell: Cell, x: float, y: float, side: float) -> str:
    """The piece of the photograph that a cell holds."""
    box = f"{cell[1] * CELL_SIZE} {cell[0] * CELL_SIZE} {CELL_SIZE} {CELL_SIZE}"
    return (
        f'<svg x="{x}" y="{y}" width="{side}" height="{side}" viewBox="{box}">'
        '<use href="#photo"/></svg>'
    )


def _square(x: float, y: float, side: float, fill: str, stroke: str = "#fff") -> str:
    place = f'x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}"'
    return f'<rect {place} fill="{fill}" stroke="{stroke}"/>'


def _grid(scene: _Scene, x: float, y: float, side: float, removed: str) -> str:
    """The image as a grid: visible cells as they are, removed ones in one colour."""
    drawn = []
    for row, column in scene.cells:
        at = (x + column * side, y + row * side)
        if (row, column) in scene.visible:
            drawn.append(_crop((row, column), *at, side) + _square(*at, side, "none"))
        else:
            drawn.append(_square(*at, side, removed))
    return "".join(drawn)


def _mask_part(scene: _Scene) -> tuple[str, int]:
    side = 40
    count, total = len(scene.visible), len(scene.cells)
    beside = _MARGIN + scene.width * side + 28
    drawn = _heading(1, "Cut into cells, remove most")
    drawn += _grid(scene, _MARGIN, 74, side, _REMOVED)
    drawn += _text(beside, 118, f"{count} of {total}", size=46, fill=_ACCENT)
    drawn += _text(
        beside, 158, "cells stay visible.", f"A cell has {CELL_SIZE} x {CELL_SIZE}",
        "pixels. Grey cells", "are not stored,", "not computed and", "not seen.",
    )  # fmt: skip
    return drawn, 74 + max(scene.height * side, 240) + 20


def _packed_part(scene: _Scene) -> tuple[str, int]:
    side, a_row = 56, 10
    rows = -(-len(scene.visible) // a_row)
    drawn = _heading(2, "Pack the visible cells")
    for index, cell in enumerate(scene.visible):
        x, y = _MARGIN + index % a_row * (side + 2), 70 + index // a_row * (side + 2)
        drawn += _crop(cell, x, y, side)
        drawn += f'<rect x="{x}" y="{y}" width="24" height="20" fill="#fff" fill-opacity=".8"/>'
        drawn += _text(x + 3, y + 16, str(index), size=16)
    below = 70 + rows * (side + 2) + 24
    sides = ", ".join(f"{side} x {side}" for side in STAGE_SIDES)
    drawn += _text(
        _MARGIN, below, "Nearly all layers stay inside a cell, so they run on this list.",
        f"A cell holds {sides} positions", "in stages 1 to 4.",
    )  # fmt: skip
    return drawn, below + 76


def _crossing(scene: _Scene) -> Cell:
    """A visible cell whose right neighbour is visible too, and the one below removed."""
    for row, column in scene.visible:
        below_removed = row + 1 < scene.height and (row + 1, column) not in scene.visible
        if below_removed and (row, column + 1) in scene.visible:
            return row, column
    raise ValueError(
        "the mask has no visible cell with a visible one to its right and a removed one below: "
        "draw another, with another seed"
    )


def _depthwise_part(scene: _Scene) -> tuple[str, int]:
    side = 112
    step = side / STAGE_SIDES[0]
    row, column = _crossing(scene)
    drawn = _heading(3, "One layer looks across cells")
    for down in (0, 1):
        for right in (0, 1):
            cell = (row + down, column + right)
            at = (_MARGIN + right * side, 74 + down * side)
            visible = cell in scene.visible
            drawn += _crop(cell, *at, side) if visible else _square(*at, side, _REMOVED)
            drawn += _square(*at, side, "none")
            if not visible:
                middle = 'text-anchor="middle"'
                drawn += _text(
                    at[0] + side / 2, at[1] + side - 12, "zeros", fill=_QUIET, more=middle
                )
    lines = "".join(
        f"M{_MARGIN} {74 + i * step:g}h{2 * side}M{_MARGIN + i * step:g} 74v{2 * side}"
        for i in range(2 * STAGE_SIDES[0] + 1)
    )
    drawn += f'<path d="{lines}" stroke="#fff" stroke-opacity=".45" fill="none"/>'
    centre = STAGE_SIDES[0] - 2  # two positions from the corner, so that all four cells are met
    start, window = (centre - _REACH) * step, (2 * _REACH + 1) * step
    drawn += (
        f'<rect x="{_MARGIN + start:g}" y="{74 + start:g}" width="{window:g}" height="{window:g}" '
        f'fill="{_TOKEN}" fill-opacity=".3" stroke="{_TOKEN}" stroke-width="4"/>'
    )
    drawn += _square(_MARGIN + centre * step, 74 + centre * step, step, _TOKEN)
    drawn += _text(
        _MARGIN + 2 * side + 28, 98, "The 7 x 7 depthwise", "convolution needs",
        "neighbours. Visible ones", "are looked up, removed", "ones count as zero, and",
        "only visible positions", "get a result.",
    )  # fmt: skip
    return drawn, 74 + 2 * side + 24


def _decoder_part(scene: _Scene) -> tuple[str, int]:
    side = 30
    right = WIDTH - _MARGIN - scene.width * side
    middle = 74 + scene.height * side / 2
    drawn = _heading(4, "Fill in, predict, compare")
    drawn += _grid(scene, _MARGIN, 74, side, _TOKEN)
    left_end = _MARGIN + scene.width * side
    drawn += (
        f'<path d="M{left_end + 14} {middle}H{right - 16}m-12 -10l12 10l-12 10" fill="none" '
        f'stroke="{_ACCENT}" stroke-width="4"/>'
    )
    centred = 'text-anchor="middle"'
    drawn += _text((left_end + right) / 2, middle - 18, "decoder", fill=_ACCENT, more=centred)
    for row, column in scene.cells:
        at = (right + column * side, 74 + row * side)
        if (row, column) in scene.visible:
            drawn += _square(*at, side, _REMOVED)
        else:
            drawn += _crop((row, column), *at, side) + _square(*at, side, "none")
    below = 74 + scene.height * side + 30
    drawn += _text(_MARGIN, below, "One learned token", "in each removed place")
    drawn += _text(right, below, "To predict: pixels of", "removed cells only")
    drawn += _text(
        _MARGIN, below + 76, "Fine-tuning: the same encoder and weights,",
        "without a mask. Nothing is converted.", more='font-weight="700"',
    )  # fmt: skip
    return drawn, int(below + 76 + 27 + 34)
