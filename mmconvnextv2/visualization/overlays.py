"""Predictions drawn on images: labels, instances, semantic maps, and sheets of pictures.

Shape suffixes: H and W pixels, R instances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CLASS_COLOURS = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
    (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212),
)  # fmt: skip
"""RGB colours by the number of a class; they begin again after the last."""

_OPACITY = 0.45
_SMALLEST_TEXT = 12  # pixels; read without effort down to here

RGB = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are the first ones outside."""


def draw_caption(image: Image.Image, text: str, scale: int = 2) -> Image.Image:
    """Enlarge an image and write a line of text into its upper left corner, on black.

    Args:
        image: RGB image.
        text: the line; written smaller where it would not fit.
        scale: integer factor of enlargement.
    """
    canvas = _enlarge(image, scale)
    font = _font(canvas.size, [text])
    _draw_tag(ImageDraw.Draw(canvas), (0, 0, *_tag_size(font, text)), text, font, (0, 0, 0))
    return canvas


def draw_instances(
    image: Image.Image,
    boxes_R4: NDArray[np.floating],
    masks_RHW: NDArray[np.bool_],
    texts: Sequence[str],
    colours: Sequence[int],
    scale: int = 2,
) -> Image.Image:
    """Draw boxes, masks and a text an instance.

    A text is on a tag of the box's colour, which lies above the box, or else where it covers the
    least of other tags. No tag is cut off by the border of the picture.

    Args:
        image: RGB image of H x W pixels.
        boxes_R4: corners x1, y1, x2, y2 in pixels of the image, the most important first.
        masks_RHW: mask of each instance.
        texts: what to write at each box; written smaller where one would not fit.
        colours: number of each instance's colour, such as its class.
        scale: integer factor of enlargement.
    """
    canvas = _enlarge(image, scale)
    for mask_HW, colour in zip(masks_RHW, colours, strict=True):
        labels_HW = np.where(mask_HW, 0, -1)
        canvas = _tint(canvas, labels_HW, [CLASS_COLOURS[colour % len(CLASS_COLOURS)]])
    if not len(texts):
        return canvas
    draw = ImageDraw.Draw(canvas)
    font = _font(canvas.size, texts)
    rgbs = [CLASS_COLOURS[colour % len(CLASS_COLOURS)] for colour in colours]
    corner = np.array([canvas.width, canvas.height, canvas.width, canvas.height]) - 1
    boxes_R4 = np.clip(np.asarray(boxes_R4) * scale, 0, corner)
    for box, rgb in zip(boxes_R4, rgbs, strict=True):
        draw.rectangle([float(side) for side in box], outline=rgb, width=_line_width(canvas.size))
    tags = place_tags(boxes_R4, [_tag_size(font, text) for text in texts], canvas.size)
    # The first ones last: where tags have to overlap, those stay whole.
    for tag, text, rgb in reversed(list(zip(tags, texts, rgbs, strict=True))):
        _draw_tag(draw, tag, text, font, rgb)
    return canvas


def place_tags(
    boxes_R4: NDArray[np.floating],
    sizes: Sequence[tuple[int, int]],
    canvas_size: tuple[int, int],
) -> list[Rectangle]:
    """Find a place for the tag of each box, one after the other.

    Args:
        boxes_R4: corners x1, y1, x2, y2 in pixels of the canvas.
        sizes: width and height of each tag.
        canvas_size: width and height of the picture.

    Returns:
        Rectangles inside the canvas, unless one is larger than that. Of the places at the edges of
        a box, outside first, a tag gets the first at which it covers no earlier tag, or else the
        one at which it covers the least.
    """
    placed: list[Rectangle] = []
    for box, size in zip(boxes_R4, sizes, strict=True):
        places = _places(box, size, canvas_size)
        placed.append(min(places, key=lambda tag: sum(_overlap(tag, other) for other in placed)))
    return placed


def draw_semantic_map(
    image: Image.Image,
    labels_HW: NDArray[np.integer],
    palette: Sequence[Sequence[int]],
    scale: int = 2,
) -> Image.Image:
    """Tint each pixel with the colour of its class.

    Args:
        image: RGB image of H x W pixels.
        labels_HW: class of each pixel; numbers outside the palette stay as they are.
        palette: RGB colour of each class; black leaves its pixels as they are.
        scale: integer factor of enlargement.
    """
    black = [i for i, colour in enumerate(palette) if not any(colour)]
    labels_HW = np.where(np.isin(labels_HW, black), -1, labels_HW)
    return _tint(_enlarge(image, scale), labels_HW, palette)


def contact_sheet(images: Sequence[Image.Image], columns: int, gap: int = 6) -> Image.Image:
    """Lay pictures of one size out in rows.

    Raises:
        ValueError: there is no picture, or they differ in size.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"a sheet needs pictures of one size, got {sorted(sizes)}")
    ((width, height),) = sizes
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255)
    )
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def _enlarge(image: Image.Image, scale: int) -> Image.Image:
    size = (image.width * scale, image.height * scale)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _tint(
    canvas: Image.Image, labels_HW: NDArray[np.integer], palette: Sequence[Sequence[int]]
) -> Image.Image:
    colours = np.asarray(palette, dtype=np.float64)
    scale = canvas.height // labels_HW.shape[0]
    labels_HW = labels_HW.repeat(scale, axis=0).repeat(scale, axis=1)
    known_HW = (labels_HW >= 0) & (labels_HW < len(colours))
    tint_HW3 = colours[np.where(known_HW, labels_HW, 0)]
    pixels_HW3 = np.asarray(canvas, dtype=np.float64)
    blended = (1 - _OPACITY) * pixels_HW3 + _OPACITY * tint_HW3
    result = np.where(known_HW[..., None], blended, pixels_HW3)
    return Image.fromarray(result.round().astype(np.uint8))


def _places(
    box: NDArray[np.floating], size: tuple[int, int], canvas_size: tuple[int, int]
) -> list[Rectangle]:
    """Where a tag may lie at its box, the best first, moved into the canvas."""
    x1, y1, x2, y2 = (round(float(side)) for side in box)
    width, height = size
    above_and_below = [(x, y) for y in (y1 - height, y2 + 1) for x in (x1, x2 + 1 - width)]
    inside = [(x, y) for y in (y1, y2 + 1 - height) for x in (x1, x2 + 1 - width)]
    beside = [(x, y) for y in (y1, y2 + 1 - height) for x in (x2 + 1, x1 - width)]
    rightmost, lowest = max(0, canvas_size[0] - width), max(0, canvas_size[1] - height)
    corners = [
        (min(max(x, 0), rightmost), min(max(y, 0), lowest))
        for x, y in (*above_and_below, *inside, *beside)
    ]
    return [(x, y, x + width, y + height) for x, y in corners]


def _overlap(first: Rectangle, second: Rectangle) -> int:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    tag: Rectangle,
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: RGB,
) -> None:
    left, top, right, bottom = tag
    draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    ink = (255, 255, 255) if _white_is_clearer(colour) else (0, 0, 0)
    draw.text((left + _margin(font), (top + bottom) / 2), text, ink, font, anchor="lm")


def _tag_size(font: ImageFont.FreeTypeFont, text: str) -> tuple[int, int]:
    return math.ceil(font.getlength(text)) + 2 * _margin(font), sum(font.getmetrics())


def _margin(font: ImageFont.FreeTypeFont) -> int:
    return math.ceil(font.size / 4)


def _font(canvas_size: tuple[int, int], texts: Sequence[str]) -> ImageFont.FreeTypeFont:
    """A size that suits the picture, or the largest at which every tag fits into it."""
    wanted = max(_SMALLEST_TEXT, round(math.sqrt(max(canvas_size))))
    for size in range(wanted, 0, -1):
        font = _font_of_size(size)
        width, height = np.max([_tag_size(font, text) for text in texts], axis=0)
        if width <= canvas_size[0] and height <= canvas_size[1]:
            break
    return font


def _font_of_size(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind has no size
    return font


def _line_width(canvas_size: tuple[int, int]) -> int:
    return max(2, round(math.sqrt(max(canvas_size)) / 10))


def _white_is_clearer(colour: RGB) -> bool:
    """Whether white text has the higher contrast on a colour than black, by WCAG 2.2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in colour)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05
