"""The report: self-contained, escaped, whole or absent. Read back with an HTML parser."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mmconvnextv2.visualization import Figure, Section, write_report
from mmconvnextv2.visualization.charts import Chart, Line
from mmconvnextv2.visualization.report import Gallery, Tile

pytestmark = pytest.mark.unit

NASTY = """<script>alert("x")</script> & 'quoted' {braces} <img src=http://example.org/a.png>"""


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text inside each kind of tag."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> does not match"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader._open
    return reader


@pytest.fixture
def png(tmp_path) -> Path:
    Image.new("RGB", (8, 6), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_text_table_and_figures_come_back_as_given(tmp_path, png) -> None:
    jpeg = tmp_path / "red.jpg"
    Image.open(png).save(jpeg)
    sections = [
        Section(
            "Loss", "First.\n\nSecond\nline.", figures=[Figure(png, "Curve"), Figure(jpeg, "")]
        ),
        Section("Numbers", table=[("phase", "seconds"), ("pretrain", 3.5), ("total", 4)]),
    ]
    reader = read(write_report(tmp_path / "out" / "report.html", "A run", sections))
    assert reader.texts["title"] == reader.texts["h1"] == ["A run"]
    assert reader.texts["h2"] == ["Loss", "Numbers"]
    assert reader.texts["p"] == ["First.", "Second\nline."]
    assert reader.texts["th"] == ["phase", "seconds"]
    assert reader.texts["td"] == ["pretrain", "3.5", "total", "4"]
    assert reader.texts["figcaption"] == ["Curve", ""]
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    for attrs, file, kind in zip(images, (png, jpeg), ("png", "jpeg"), strict=True):
        head, data = attrs["src"].split(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(data, validate=True) == file.read_bytes()


def rich_section(png: Path, text: str) -> Section:
    """A section that has everything."""
    return Section(
        text,
        text,
        table=[(text,), (text,)],
        figures=[Figure(png, text)],
        facts=[(text, text)],
        charts=[Chart(text, [Line(text, [1, 2], [1.0, 2.0]), Line(text, [1], [1.0])], text, text)],
        gallery=Gallery([Figure(Image.open(png), text)], 2, [(text, (1, 2, 3))]),
        folded=(text, text),
    )


def test_everything_given_is_escaped(tmp_path, png) -> None:
    path = write_report(
        tmp_path / "report.html",
        NASTY,
        [rich_section(png, NASTY)],
        kicker=NASTY,
        subtitle=NASTY,
        tiles=[Tile(NASTY, NASTY, NASTY)],
        footer=NASTY,
    )
    reader = read(path)
    texts = {tag: set(reader.texts[tag]) for tag in reader.texts}
    for tag in "title h1 h2 p th td dt dd figcaption summary pre footer".split():
        assert texts[tag] == {NASTY}, tag
    assert texts["li"] == {NASTY} and NASTY in texts["span"]
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(images) == 2 and {attrs["alt"] for attrs in images} == {NASTY}
    assert "script" not in {tag for tag, _ in reader.tags}


def test_a_page_says_how_to_look_on_phones_in_the_dark_and_on_paper(tmp_path, png) -> None:
    page = write_report(tmp_path / "r.html", "T", [rich_section(png, "S")]).read_text()
    assert 'name="viewport" content="width=device-width' in page
    assert "color-scheme: light dark" in page and "prefers-color-scheme: dark" in page
    assert "@media print" in page and "max-width: 720px" in page
    classes = set(re.findall(r'class="([^"]+)"', page))
    style = page[: page.index("</style>")]
    used = {name for names in classes for name in names.split()}
    assert {name for name in used if f".{name}" not in style} <= {"hint", "label", "small"}


def test_a_column_of_numbers_stands_to_the_right(tmp_path) -> None:
    table = [("name", "value", "mixed"), ("a", "54.2 %", "1"), ("b", -3.5e-7, "two")]
    reader = read(write_report(tmp_path / "r.html", "T", [Section("S", table=table)]))
    cells = [attrs.get("class") for tag, attrs in reader.tags if tag in ("th", "td")]
    assert cells == [None, "number", None] * 3


def test_the_page_refers_to_nothing_outside_itself(tmp_path, png) -> None:
    path = write_report(tmp_path / "r.html", "T", [rich_section(png, "S")])
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<link|<script|<iframe|file:", page)
    for _, attrs in read(path).tags:
        assert "href" not in attrs and attrs.get("src", "data:").startswith("data:")


def test_a_failure_leaves_the_old_report(tmp_path, png, monkeypatch) -> None:
    path = write_report(tmp_path / "report.html", "old", [])
    old = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        write_report(path, "new", [Section("S", figures=[Figure(tmp_path / "no.png", "")])])
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(ValueError, match=r"PNG or JPEG file, got .*text\.png"):
        write_report(path, "new", [Section("S", figures=[Figure(text, "")])])
    with pytest.raises(ValueError, match=r"'Numbers' differ in length: \[2, 1\]"):
        write_report(path, "new", [Section("Numbers", table=[(1, 2), (3,)])])

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, "new", [])
    assert path.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["red.png", "report.html", "text.png"]
