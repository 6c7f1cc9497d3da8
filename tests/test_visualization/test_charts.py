"""Charts as HTML: where lines and labels lie, by hand; thinning, and what is refused."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mmconvnextv2.visualization.charts import Chart, Line, chart_html, format_number, thin_out

pytestmark = pytest.mark.unit

NAN = float("nan")


def paths(html: str, role: str) -> list[str]:
    return re.findall(rf'<path class="{role}" d="([^"]*)"', html)


def labels(html: str, axis: str) -> dict[str, float]:
    """Text and place (percent from the left or the top) of the labels of one axis."""
    found = re.findall(rf'<span class="{axis}" style="\w+:([\d.]+)%">([^<]*)</span>', html)
    return {text: float(place) for place, text in found}


def test_lines_and_labels_lie_where_their_values_are() -> None:
    line = Line("a", [0, 50, 100], [1.0, 3.0, 2.0])
    html = chart_html(Chart("Title", [line], y_range=(0.0, 4.0)))
    assert paths(html, "main") == ["M0.0 750.0L500.0 250.0L1000.0 500.0"]
    assert paths(html, "main dots") == ["M0.0 750.0h0M500.0 250.0h0M1000.0 500.0h0"]
    assert labels(html, "y") == {"0": 100, "1": 75, "2": 50, "3": 25, "4": 0}
    assert labels(html, "x") == {"0": 0, "50": 50, "100": 100}
    assert 'aria-label="Title: 1 at iteration 0, 2 at iteration 100"' in html


def test_the_axis_holds_all_lines_and_says_nothing_below_zero() -> None:
    lines = [Line("a", [1, 2], [0.01, 5.0]), Line("b", [1, 9], [2.0, 3.0], "good")]
    html = chart_html(Chart("T", lines, size="wide", xlabel="epoch"))
    heights = [
        float(y) for path in paths(html, "main|good") for y in re.findall(r" ([\d.-]+)", path)
    ]
    assert min(heights) > 0 and max(heights) < 1000
    assert labels(html, "y")["0"] == 100 and set(labels(html, "x")) == {"2", "4", "6", "8"}
    assert re.findall(r'<span class="key \w+">(\w)<', html) == ["a", "b"] and ">epoch<" in html


def test_values_that_are_not_finite_break_the_line() -> None:
    line = Line("a", range(5), [1.0, NAN, 2.0, 3.0, float("inf")])
    (path,) = paths(chart_html(Chart("T", [line])), "main")
    assert path.count("M") == 2 and path.count("L") == 1


@pytest.mark.parametrize(
    "value,text",
    [(0.00025, "2.5e-4"), (-5e-7, "-5e-7"), (0.001, "0.001"), (1.0, "1"), (123456, "123,456")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_labels_of_an_axis_have_one_form() -> None:
    html = chart_html(Chart("T", [Line("a", [0, 1], [0.5, 2.0])], y_range=(0.5, 2.0)))
    assert set(labels(html, "y")) == {"0.5", "1.0", "1.5", "2.0"}
    html = chart_html(Chart("T", [Line("a", [0, 20_000], [0.0, 1e-3])], y_range=(0, 1e-3)))
    assert set(labels(html, "y")) == {"0", "2.5e-4", "5e-4", "7.5e-4", "1e-3"}
    assert "10,000" in labels(html, "x")


def test_one_value_and_a_level_line_can_be_drawn() -> None:
    assert paths(chart_html(Chart("T", [Line("a", [3], [0.7])])), "main") == ["M0.0 500.0"]
    (path,) = paths(chart_html(Chart("T", [Line("a", [1, 2], [0.0, 0.0])])), "main")
    assert len(set(re.findall(r" ([\d.]+)", path))) == 1


def test_a_thinned_line_keeps_its_ends_and_extremes() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    values[4321], values[777] = 50.0, NAN
    steps, kept = thin_out(range(10_000), values.tolist(), most=100)
    assert len(steps) <= 102 and steps[0] == 0 and steps[-1] == 9999
    assert (np.diff(steps) > 0).all() and np.isfinite(kept).all()
    np.testing.assert_array_equal(kept, values[steps.astype(int)])
    for low in range(0, 10_000, 200):  # 50 pieces, and the extremes of each
        piece = values[low : low + 200]
        assert {np.nanmin(piece), np.nanmax(piece)} <= set(kept)
    assert len(thin_out([1, 2], [3.0, NAN])[0]) == 2


def test_text_is_escaped_and_tags_close() -> None:
    nasty = '<b>"&'
    html = chart_html(
        Chart(nasty, [Line(nasty, [1], [1.0]), Line("b", [1], [2.0])], nasty, nasty, "hero")
    )
    open_tags: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Balance().feed(html)
    assert not open_tags and "<b>" not in html


def test_nothing_to_draw_and_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="'T' has no finite value"):
        chart_html(Chart("T", [Line("a", [1], [NAN])]))
    with pytest.raises(ValueError, match="'a' of 'T' has 2 steps and 1 values"):
        chart_html(Chart("T", [Line("a", [1, 2], [0.5])]))
