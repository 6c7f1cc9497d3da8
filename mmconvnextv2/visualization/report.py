"""Writes a report as one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mmconvnextv2.files import write_atomically

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}

# The policy forbids everything that is not in the file itself, so the browser proves the claim.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

_STYLE = """\
:root { color-scheme: light; }
body { max-width: 58rem; margin: 2.5rem auto; padding: 0 1.25rem; color: #24292f;
       background: #fff; font: 16px/1.55 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 1.5rem; padding-bottom: .6rem;
     border-bottom: 1px solid #d8dee4; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
p { margin: .6rem 0; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .4rem; color: #57606a; font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .95rem; }
th, td { padding: .35rem 1.6rem .35rem 0; border-bottom: 1px solid #d8dee4; text-align: left;
         vertical-align: top; overflow-wrap: anywhere; }
td { font-variant-numeric: tabular-nums; }
th { border-bottom-width: 2px; font-weight: 600; }
@media print {
  body { max-width: none; margin: 0; font-size: 11pt; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
}"""


@dataclass(frozen=True)
class Figure:
    """A picture of a report.

    Attributes:
        image: Path of a PNG or JPEG file; it is copied into the report.
        caption: Text below the picture, and its description for those who cannot see it.
    """

    image: str | os.PathLike[str]
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a report: heading, then text, table and figures, each where given.

    Attributes:
        heading: The heading.
        text: Plain text; a blank line starts a new paragraph.
        table: Rows of one length; the first is the header. Cells are shown as `str` gives them.
        figures: The pictures, in order.
    """

    heading: str
    text: str = ""
    table: Sequence[Sequence[object]] = ()
    figures: Sequence[Figure] = ()


def write_report(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> Path:
    """Write a self-contained HTML page: pictures inside, no script, no link, good to print.

    All text is shown as it is given: `<`, `>`, `&` and quotes are escaped. The file appears whole
    or not at all.

    Args:
        path: The HTML file to write.
        title: Title of the page.
        sections: Its parts, in order.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: A picture is not there.
        ValueError: A picture is neither PNG nor JPEG, or the rows of a table differ in length.
    """
    body = "\n".join(_section_html(section) for section in sections)
    page = _PAGE.format(title=escape(title), style=_STYLE, body=body)
    return write_atomically(path, page.encode("utf-8"))


def _section_html(section: Section) -> str:
    paragraphs = [part.strip() for part in section.text.split("\n\n") if part.strip()]
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs]
    if section.table:
        parts.append(_table_html(section.table, section.heading))
    parts += [_figure_html(figure) for figure in section.figures]
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _table_html(rows: Sequence[Sequence[object]], heading: str) -> str:
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(f"the rows of the table in {heading!r} differ in length: {lengths}")
    header, *others = rows
    lines = ["<table>", "<thead>", _row_html(header, "th"), "</thead>", "<tbody>"]
    lines += [_row_html(row, "td") for row in others]
    return "\n".join([*lines, "</tbody>", "</table>"])


def _row_html(row: Sequence[object], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row) + "</tr>"


def _figure_html(figure: Figure) -> str:
    data = Path(figure.image).read_bytes()
    kinds = [kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)]
    if not kinds:
        raise ValueError(f"a figure must be a PNG or JPEG file, got {os.fspath(figure.image)}")
    source = f"data:{kinds[0]};base64,{base64.b64encode(data).decode('ascii')}"
    caption = escape(figure.caption)
    image = f'<img src="{source}" alt="{caption}">'
    return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>"
