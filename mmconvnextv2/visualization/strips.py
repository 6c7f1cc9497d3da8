"""Cuts a grid of reconstructions into one strip an image, to lay them out anew."""

from __future__ import annotations

from PIL import Image

from mmconvnextv2.visualization.reconstruction import PANELS, GridLayout


def split_grid(grid: Image.Image, height: int, width: int) -> list[Image.Image]:
    """Cut what `reconstruction_grid` draws into rows, without labels and margins.

    Args:
        grid: the picture.
        height: of one of its images, in pixels before enlargement.
        width: the same.

    Returns:
        One picture a row: original, masked, prediction and composite, with transparent gaps.

    Raises:
        ValueError: the picture is no grid of images of that size.
    """
    one = GridLayout.for_images(1, height, width)
    rows, rest = divmod(grid.height - one.size[1], one.corner(1, 0)[1] - one.corner(0, 0)[1])
    layout = GridLayout.for_images(rows + 1, height, width)
    if rest or grid.size != layout.size:
        raise ValueError(
            f"a picture of {grid.width}x{grid.height} is no grid of reconstructions of images of "
            f"{width}x{height} pixels"
        )
    return [_strip(grid, layout, row) for row in range(layout.rows)]


def _strip(grid: Image.Image, layout: GridLayout, row: int) -> Image.Image:
    width, height = layout.width * layout.scale, layout.height * layout.scale
    strip = Image.new("RGBA", (layout.size[0] - 2 * layout.margin, height))
    for column in range(len(PANELS)):
        left, top = layout.corner(row, column)
        panel = grid.crop((left, top, left + width, top + height))
        strip.paste(panel.convert("RGBA"), (left - layout.margin, 0))
    return strip
