"""Writes a report as one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.charts import Chart, chart_html
from mmconvnextv2.visualization.report_style import STYLE

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?%)?|nan|inf|-inf|–", re.IGNORECASE)
_NUMERIC = ' class="number"'

# The policy forbids everything that is not in the file itself, so the browser proves the claim.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Figure:
    """A picture of a report.

    Attributes:
        image: Path of a PNG or JPEG file, or the picture itself; it is copied into the report.
        caption: Text below the picture, and its description for those who cannot see it.
    """

    image: str | os.PathLike[str] | Image.Image
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side.

    Attributes:
        figures: The pictures, in order.
        columns: How many stand in a row on a wide screen; half as many on a phone.
        colours: Name and RGB colour of what is tinted in them.
    """

    figures: Sequence[Figure]
    columns: int = 4
    colours: Sequence[tuple[str, Sequence[int]]] = ()


@dataclass(frozen=True)
class Tile:
    """A figure that the page opens with: what it is, its value, and a remark."""

    label: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report: a heading and, each where given and in this order, what is below.

    Attributes:
        heading: The heading.
        text: Plain text; a blank line starts a new paragraph.
        table: Rows of one length; the first is the header. Cells are shown as `str` gives them.
        figures: The pictures, one below the other.
        facts: Names and values, shown in two columns.
        charts: Line charts.
        gallery: Pictures side by side.
        folded: Title and content of a long text that opens on a click.
    """

    heading: str
    text: str = ""
    table: Sequence[Sequence[object]] = ()
    figures: Sequence[Figure] = ()
    facts: Sequence[tuple[str, object]] = ()
    charts: Sequence[Chart] = ()
    gallery: Gallery | None = None
    folded: tuple[str, str] | None = None


def write_report(
    path: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    *,
    kicker: str = "",
    subtitle: str = "",
    tiles: Sequence[Tile] = (),
    footer: str = "",
) -> Path:
    """Write a self-contained HTML page: pictures inside, no script, no link, good to print.

    It follows the reader's choice of a light or dark scheme and fits phones. All text is shown as
    it is given: `<`, `>`, `&` and quotes are escaped. The file appears whole or not at all.

    Args:
        path: The HTML file to write.
        title: Title of the page.
        sections: Its parts, in order.
        kicker: A few words above the title: what kind of report this is.
        subtitle: A line below the title.
        tiles: The figures that matter most, below that.
        footer: A line at the end.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: A picture is not there.
        ValueError: A picture is neither PNG nor JPEG, the rows of a table differ in length, or a
            chart has nothing to draw.
    """
    parts = [_header_html(title, kicker, subtitle)]
    if tiles:
        parts += ['<div class="tiles">', *(_tile_html(tile) for tile in tiles), "</div>"]
    parts += [_section_html(section) for section in sections]
    if footer:
        parts.append(f"<footer>{escape(footer)}</footer>")
    page = _PAGE.format(title=escape(title), style=STYLE, body="\n".join(parts))
    return write_atomically(path, page.encode("utf-8"))


def _header_html(title: str, kicker: str, subtitle: str) -> str:
    above = f'<p class="kicker">{escape(kicker)}</p>\n' if kicker else ""
    below = f'\n<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""
    return f"<header>\n{above}<h1>{escape(title)}</h1>{below}\n</header>"


def _tile_html(tile: Tile) -> str:
    names = (("label", tile.label), ("number", tile.value), ("hint", tile.hint))
    spans = (f'<span class="{name}">{escape(text)}</span>' for name, text in names if text)
    return f'<div class="tile">{"".join(spans)}</div>'


def _section_html(section: Section) -> str:
    paragraphs = [part.strip() for part in section.text.split("\n\n") if part.strip()]
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs]
    if section.facts:
        parts.append(_facts_html(section.facts))
    if section.table:
        parts.append(_table_html(section.table, section.heading))
    if section.charts:
        charts = "\n".join(chart_html(chart) for chart in section.charts)
        parts.append(f'<div class="charts">\n{charts}\n</div>')
    if section.gallery is not None:
        parts.append(_gallery_html(section.gallery))
    parts += [_figure_html(figure) for figure in section.figures]
    if section.folded is not None:
        summary, content = map(escape, section.folded)
        parts.append(f"<details><summary>{summary}</summary>\n<pre>{content}</pre></details>")
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _facts_html(facts: Sequence[tuple[str, object]]) -> str:
    rows = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts
    )
    return "\n".join(["<dl>", *rows, "</dl>"])


def _table_html(rows: Sequence[Sequence[object]], heading: str) -> str:
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(f"the rows of the table in {heading!r} differ in length: {lengths}")
    header, *others = rows
    columns = list(zip(*others, strict=True)) or [()] * len(header)
    numeric = [
        bool(column) and all(_NUMBER.fullmatch(str(cell)) for cell in column) for column in columns
    ]
    lines = ["<table>", "<thead>", _row_html(header, "th", numeric), "</thead>", "<tbody>"]
    lines += [_row_html(row, "td", numeric) for row in others]
    return "\n".join(['<div class="scroll">', *lines, "</tbody>", "</table>", "</div>"])


def _row_html(row: Sequence[object], tag: str, numeric: Sequence[bool]) -> str:
    cells = (
        f"<{tag}{_NUMERIC if is_number else ''}>{escape(str(cell))}</{tag}>"
        for cell, is_number in zip(row, numeric, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _gallery_html(gallery: Gallery) -> str:
    narrow = max(1, gallery.columns // 2)
    figures = "\n".join(_figure_html(figure) for figure in gallery.figures)
    style = f"--wide:{gallery.columns};--narrow:{narrow}"
    html = f'<div class="gallery" style="{style}">\n{figures}\n</div>'
    if gallery.colours:
        swatches = "".join(
            f'<li><i style="background:rgb({",".join(str(int(c)) for c in rgb)})"></i>'
            f"{escape(name)}</li>"
            for name, rgb in gallery.colours
        )
        html += f'\n<ul class="swatches">{swatches}</ul>'
    return html


def _figure_html(figure: Figure) -> str:
    data = _picture_bytes(figure.image)
    kinds = [kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)]
    if not kinds:
        raise ValueError(f"a figure must be a PNG or JPEG file, got {figure.image}")
    source = f"data:{kinds[0]};base64,{base64.b64encode(data).decode('ascii')}"
    caption = escape(figure.caption)
    image = f'<img src="{source}" alt="{caption}">'
    return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>"


def _picture_bytes(image: str | os.PathLike[str] | Image.Image) -> bytes:
    if not isinstance(image, Image.Image):
        return Path(image).read_bytes()
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
