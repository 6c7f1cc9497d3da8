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


def draw_caption(image: Image.Image, text: str, scale: int = 2) -> Image.Image:
    """Enlarge an image and write a line of text into its upper left corner.

    Args:
        image: RGB image.
        text: the line.
        scale: integer factor of enlargement.
    """
    canvas = _enlarge(image, scale)
    _write(ImageDraw.Draw(canvas), (4, 2), text, (255, 255, 255))
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

    Args:
        image: RGB image of H x W pixels.
        boxes_R4: corners x1, y1, x2, y2 in pixels of the image.
        masks_RHW: mask of each instance.
        texts: what to write above each box.
        colours: number of each instance's colour, such as its class.
        scale: integer factor of enlargement.
    """
    canvas = _enlarge(image, scale)
    for mask_HW, colour in zip(masks_RHW, colours, strict=True):
        labels_HW = np.where(mask_HW, 0, -1)
        canvas = _tint(canvas, labels_HW, [CLASS_COLOURS[colour % len(CLASS_COLOURS)]])
    draw = ImageDraw.Draw(canvas)
    for box, text, colour in zip(boxes_R4, texts, colours, strict=True):
        rgb = CLASS_COLOURS[colour % len(CLASS_COLOURS)]
        x1, y1, x2, y2 = (float(value) * scale for value in box)
        draw.rectangle((x1, y1, x2, y2), outline=rgb, width=2)
        _write(draw, (x1 + 2, max(0.0, y1 - 14)), text, rgb)
    return canvas


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


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: tuple[int, int, int]
) -> None:
    font = ImageFont.load_default(size=13)
    draw.text(corner, text, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
