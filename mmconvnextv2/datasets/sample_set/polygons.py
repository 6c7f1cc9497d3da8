"""Exact COCO polygons of a mask: pixel outlines, holes joined to them by a slit of no width.

Coordinates are COCO's: (x, y) of pixel corners, x to the right, y downwards; the pixel in row r and
column c covers the square from (c, r) to (c + 1, r + 1).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Vertex = tuple[int, int]


def mask_to_polygons(mask_HW: np.ndarray) -> list[list[int]]:
    """Trace a mask so that filling the polygons gives back every pixel of it, and no other.

    COCO's polygons of one instance are united, so a hole cannot be a polygon of its own. It becomes
    part of the outline through a vertical slit, which is walked once down and once up and so
    encloses nothing. Parts that touch at most by a corner get a polygon each.

    Args:
        mask_HW: bool (H, W).

    Returns:
        One flat list x0, y0, x1, y1, ... a part, in corner coordinates; empty for an empty mask.

    Raises:
        ValueError: If the mask is not a two-dimensional bool array.
    """
    if mask_HW.ndim != 2 or mask_HW.dtype != np.bool_:
        raise ValueError(
            f"mask must be bool of shape (H, W), got {mask_HW.dtype} of shape {mask_HW.shape}"
        )
    parts, num_parts = ndimage.label(mask_HW)
    polygons = []
    for part in range(1, num_parts + 1):
        outline, *holes = _trace_loops(parts == part)
        for hole in holes:
            outline = _join_hole(outline, hole)
        polygons.append([value for vertex in _corners(outline) for value in vertex])
    return polygons


def _trace_loops(part_HW: np.ndarray) -> list[list[Vertex]]:
    """Return the closed boundary loops of a 4-connected part, each from its top-left vertex on.

    They are sorted by that vertex from top to bottom, so the outer loop is the first. A loop holds
    every grid point that it passes; its first one is not repeated at the end.
    """
    successors = _boundary_edges(part_HW)
    loops = []
    # Row first, then column: the first vertex of a loop to be met is its top-left one. Three of the
    # four pixels around that one are alike, so no second loop passes it.
    for start in sorted(successors, key=lambda vertex: (vertex[1], vertex[0])):
        if not successors[start]:
            continue
        loop = [start]
        step = successors[start].pop()
        current = _move(start, step)
        while current != start:
            loop.append(current)
            step = _take_step(successors[current], step)
            current = _move(current, step)
        loops.append(loop)
    return loops


def _boundary_edges(part_HW: np.ndarray) -> dict[Vertex, list[Vertex]]:
    """Map each boundary vertex to its outgoing unit steps, the mask on the right-hand side."""
    padded = np.pad(part_HW, 1)
    inside = padded[1:-1, 1:-1]
    sides = (
        # (neighbour outside the mask, offset of the edge's start from the pixel's corner, step)
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # above: walk right along the top
        (padded[1:-1, 2:], (1, 0), (0, 1)),  # right: walk down
        (padded[2:, 1:-1], (1, 1), (-1, 0)),  # below: walk left
        (padded[1:-1, :-2], (0, 1), (0, -1)),  # left: walk up
    )
    successors: dict[Vertex, list[Vertex]] = {}
    for neighbour, (dx, dy), step in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            successors.setdefault((column + dx, row + dy), []).append(step)
    return successors


def _move(vertex: Vertex, step: Vertex) -> Vertex:
    return vertex[0] + step[0], vertex[1] + step[1]


def _take_step(steps: list[Vertex], previous: Vertex) -> Vertex:
    """Take the step that turns right where there are two: it stays on the same pixel's side."""
    right = (-previous[1], previous[0])
    chosen = right if right in steps else steps[0]
    steps.remove(chosen)
    return chosen


def _join_hole(outline: list[Vertex], hole: list[Vertex]) -> list[Vertex]:
    """Splice a hole into the outline by a slit straight up from the hole's top-left vertex."""
    x, top = hole[0]
    index = {vertex: position for position, vertex in enumerate(outline)}
    # Whatever lies above was joined before, since holes come sorted: the slit always ends.
    y = next(y for y in range(top - 1, -1, -1) if (x, y) in index)
    position = index[x, y]
    return [*outline[: position + 1], *hole, hole[0], *outline[position:]]


def _corners(loop: list[Vertex]) -> list[Vertex]:
    """Keep the vertices where a closed loop changes its direction."""
    steps = [_direction(loop[i - 1], vertex) for i, vertex in enumerate(loop)]
    return [v for i, v in enumerate(loop) if steps[i] != steps[(i + 1) % len(loop)]]


def _direction(start: Vertex, end: Vertex) -> Vertex:
    dx, dy = end[0] - start[0], end[1] - start[1]
    return (dx > 0) - (dx < 0), (dy > 0) - (dy < 0)
