"""Reports of studies: verdicts against Welch's formula, the paper's column, pictures, the page."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mmconvnextv2.apis.study_definition import Claim, Curves, Row, Study, StudyError, Table
from mmconvnextv2.apis.study_report import Verdict, fill_part, judge_claim, write_report
from mmconvnextv2.visualization.study import plot_dependence

pytestmark = pytest.mark.unit


def welch(a: list[float], b: list[float]) -> tuple[float, float]:
    """95 % interval of the difference of means, with Satterthwaite's degrees of freedom."""
    error_a, error_b = (np.var(x, ddof=1) / len(x) for x in (a, b))
    degrees = (error_a + error_b) ** 2 / (error_a**2 / (len(a) - 1) + error_b**2 / (len(b) - 1))
    reach = stats.t.ppf(0.975, degrees) * math.sqrt(error_a + error_b)
    return np.mean(a) - np.mean(b) - reach, np.mean(a) - np.mean(b) + reach


@pytest.mark.parametrize(
    ("better", "than", "outcome"),
    [
        ([80.0, 82.0, 81.0], [60.0, 61.0, 59.5], "supported"),
        ([60.0, 61.0, 59.5], [80.0, 82.0, 81.0], "contradicted"),
        ([70.0, 74.0, 71.5], [69.0, 72.5, 70.0], "not supported"),
    ],
)
def test_verdicts_against_welch(better: list[float], than: list[float], outcome: str) -> None:
    verdict = judge_claim(Claim("it helps", "a", "b"), dict(a=better, b=than))
    low, high = welch(better, than)
    assert verdict.outcome == outcome
    assert (verdict.low, verdict.high) == pytest.approx((low, high))
    assert verdict.difference == pytest.approx(np.mean(better) - np.mean(than))
    assert verdict.line().startswith(f"- **{outcome}**: it helps ({verdict.difference:+.3g}, 95%")


def test_a_gain_is_a_difference_seed_by_seed() -> None:
    values = dict(a=[50.0, 70.0, 60.0], b=[40.0, 61.0, 49.0], c=[9.0, 9.5, 9.2], d=[9.1, 9.4, 9.2])
    verdict = judge_claim(Claim("a gains more", ("a", "b"), ("c", "d")), values)
    # Not paired, the seeds of a and b spread so far that nothing could be said.
    assert (verdict.low, verdict.high) == pytest.approx(welch([10.0, 9.0, 11.0], [-0.1, 0.1, 0.0]))
    assert verdict.outcome == "supported"


def test_verdicts_without_spread() -> None:
    claim = Claim("it helps", "a", "b")
    one = judge_claim(claim, dict(a=[9.0], b=[1.0]))
    assert (one.outcome, one.difference) == ("not tested", 8.0) and "single seed" in one.line()
    assert judge_claim(claim, dict(a=[9.0, 9.0], b=[1.0, 1.0])).outcome == "supported"
    assert judge_claim(claim, dict(a=[1.0, 1.0], b=[1.0, 1.0])).outcome == "not supported"


TABLE = Table(
    name="accuracy",
    title="Accuracy",
    metrics={"top1": "top-1 (%)", "start.computing_seconds": "pre-training (s)"},
    rows=(Row("ours", "tuned", paper=84.6, x=2.0), Row("scratch", "scratch", paper=84.25, x=1.0)),
    claims=(Claim("ours helps", "ours", "scratch"),),
    paper="paper: top-1",
)
RESULTS = {
    "before": {0: dict(computing_seconds=100.0), 1: dict(computing_seconds=120.0)},
    "tuned": {0: dict(top1=80.0, seconds=7.0), 1: dict(top1=82.0, seconds=8.0)},
    "scratch": {0: dict(top1=60.0, seconds=7.0), 1: dict(top1=61.0, seconds=8.0)},
}


def study(table: Table = TABLE, curves: Curves | None = None) -> Study:
    class Arm:
        def __init__(self, name: str, start: str | None = None) -> None:
            self.name, self.start = name, start

    arms = (Arm("before"), Arm("tuned", "before"), Arm("scratch"))
    return Study("toy", "Toy", "Which?", (table,), curves, arms, {})


def test_the_report_has_the_paper_beside_and_the_cost_before(tmp_path: Path) -> None:
    report = write_report(study(), RESULTS, (0, 1), tmp_path)
    assert report.complete
    text = (tmp_path / "study.md").read_text()
    assert text.startswith("# Toy\n\nWhich?\n") and text.endswith(report.body)
    assert "| | seeds | top-1 (%) | pre-training (s) | paper: top-1 |" in text
    assert "| ours | 2 | 81 ± 1.4 | 110 ± 14 | 84.6 |" in text
    assert "| scratch | 2 | 60.5 ± 0.71 | 0 ± 0 | 84.25 |" in text
    assert "![Accuracy](toy-accuracy.png)" in text
    assert "- **supported**: ours helps (+20.5, 95% interval" in text
    assert report.pictures == (tmp_path / "toy-accuracy.png",)
    with Image.open(report.pictures[0]) as picture:
        assert picture.format == "PNG" and len(np.unique(np.asarray(picture.convert("L")))) > 10
    content = json.loads((tmp_path / "study.json").read_text())["tables"]["accuracy"]
    assert content["rows"]["ours"]["paper"] == 84.6
    assert content["rows"]["ours"]["top1"]["values"] == [80.0, 82.0]
    low, high = welch([80.0, 82.0], [60.0, 61.0])
    (claim,) = content["claims"]
    assert (claim["low"], claim["high"]) == pytest.approx((low, high))


def test_a_metric_that_a_row_does_not_have_is_named(tmp_path: Path) -> None:
    table = dataclasses.replace(TABLE, metrics={"top1": "top-1", "mIoU": "mIoU"})
    with pytest.raises(StudyError, match="'accuracy' shows mIoU, which cell 'tuned' .* has top1"):
        write_report(study(table), RESULTS, (0, 1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_report_of_what_there_is_so_far(tmp_path: Path) -> None:
    assert write_report(study(), {}, (0, 1), tmp_path) == write_report(
        study(), dict(before=RESULTS["before"]), (0, 1), tmp_path
    )
    some = dict(before=RESULTS["before"], tuned={0: RESULTS["tuned"][0]}, scratch={})
    report = write_report(study(), some, (0, 1), tmp_path)
    assert not report.complete
    assert "| ours | 1 | 80 |" in report.body and "| scratch |" not in report.body
    assert "**" not in report.body, "no verdict while a row is missing"
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["tables"]["accuracy"]["rows"]["ours"]["top1"]["std"] is None
    uneven = {**RESULTS, "scratch": {0: RESULTS["scratch"][0]}}
    assert "**" not in write_report(study(), uneven, (0, 1), tmp_path).body
    apart = {**some, "scratch": {1: RESULTS["scratch"][1]}}
    assert "**" not in write_report(study(), apart, (0, 1), tmp_path).body, "other seeds"


def test_curves_have_a_table_a_picture_and_verdicts(tmp_path: Path) -> None:
    claims = (Claim("A is further apart", "A", "B"),)
    curves = Curves(dict(A="before", B="tuned"), "images", 64, 3, claims)
    distances = dict(
        A={0: [0.4, 0.5], 1: [0.42, 0.5]},
        B={0: [0.4, 0.1], 1: [0.38, 0.1]},
    )
    report = write_report(study(curves=curves), RESULTS, (0, 1), tmp_path, distances)
    assert "| A | 2 | 0.455 ± 0.0071 |" in report.body
    assert "| B | 2 | 0.245 ± 0.0071 |" in report.body
    assert "**supported**: A is further apart (+0.21" in report.body
    assert [path.name for path in report.pictures] == ["toy-accuracy.png", "toy-curves.png"]
    content = json.loads((tmp_path / "study.json").read_text())["tables"]["curves"]
    assert content["blocks"]["B"]["1"] == [0.38, 0.1]
    assert "curves" not in write_report(study(curves=curves), RESULTS, (0, 1), tmp_path).body


def test_a_table_over_an_axis_is_drawn_as_curves(tmp_path: Path) -> None:
    table = dataclasses.replace(TABLE, x="size")
    (picture,) = write_report(study(table), RESULTS, (0, 1), tmp_path).pictures
    over_axis = picture.read_bytes()
    (picture,) = write_report(study(), RESULTS, (0, 1), tmp_path).pictures
    assert over_axis != picture.read_bytes()
    for series in ({}, {"a": {}}, {"a": {1.0: []}}, {str(i): {1.0: [1.0]} for i in range(6)}):
        with pytest.raises(ValueError, match="1 to 5 series"):
            plot_dependence(series, tmp_path / "no.png", title="", xlabel="", ylabel="")
    assert not (tmp_path / "no.png").exists()


def test_a_part_of_a_page_is_filled() -> None:
    page = "# T\n<!-- study a: begin -->\nold\n<!-- study a: end -->\nend\n"
    filled = fill_part(page, "a", "A", r"new \1" + "\n")
    assert filled == "# T\n<!-- study a: begin -->\nnew \\1\n<!-- study a: end -->\nend\n"
    assert fill_part(filled, "a", "A", "old") == page
    appended = "\n## B\n\n<!-- study b: begin -->\nnew\n<!-- study b: end -->\n"
    assert fill_part(page, "b", "B", "new") == page + appended
    for wrong in (page.replace("begin", "start"), page + page):
        with pytest.raises(ValueError, match="<!-- study a: begin --> and .* once each"):
            fill_part(wrong, "a", "A", "new")


def test_a_verdict_without_interval_is_json() -> None:
    assert math.isnan(Verdict("it helps", "not tested", 1.0).low)
