"""The page of results, from documents with made-up figures whose ratios are known."""

from __future__ import annotations

import json
import re

import pytest

from mmconvnextv2.benchmark.__main__ import main
from mmconvnextv2.benchmark.compare import Comparison, Row
from mmconvnextv2.benchmark.measure import Timing
from mmconvnextv2.benchmark.memory import Memory
from mmconvnextv2.benchmark.results import (
    make_document,
    read_document,
    write_document,
)
from mmconvnextv2.benchmark.targets import TARGETS, Finding, Target, evaluate
from mmconvnextv2.files import write_atomically

pytestmark = pytest.mark.unit

ENVIRONMENT = dict(
    mmconvnextv2="0.1.0",
    python="3.11",
    torch="2.11",
    system="Linux",
    cpu="A processor",
    instructions="AVX512",
    cores=2,
    threads=2,
    gpu=None,
    peers=dict(timm="timm 1.0", transformers=None),
)


def row(name: str, seconds: float, activations: int = 0, group: str = "encoder", **more) -> Row:
    memory = Memory(100, 100, 200, activations, activations // 2)
    return Row(group, name, 8, Timing((seconds,)), 10**9, memory, **more)


def document(
    *rows: Row,
    left_out=(),
    date="2030-01-02T03:04:05",
    benchmark="pretrain_step",
    **given,
):
    arguments = dict(arch="tiny", batch=8, image_size=224, dtype="fp32", device="cpu", repeat=5)
    arguments |= given
    found = Comparison(list(rows), list(left_out))
    made = make_document(benchmark, f"python -m {benchmark}", arguments, ENVIRONMENT, found)
    return dict(made, date=date)


def value(quantity: str, against: str, *documents) -> float | None:
    """What is found for the packed encoder of Tiny."""
    (target,) = (
        target
        for target in TARGETS
        if target.quantity == quantity
        and target.against[0] == against
        and target.where.get("arch") == "tiny"
        and target.where["device"] == "cpu"
        and target.group == "encoder"
    )
    (finding,) = evaluate([target], documents)
    return finding.value if isinstance(finding, Finding) else None


def test_ratios_are_read_the_right_way_round():
    one = document(
        row("masked", 3.0, activations=100),
        row("packed", 1.0, activations=35, floor=Timing((0.8,))),
        row("timm, dense", 4.0),
        row("mmpretrain, dense, channels last", 2.5),
        row("timm, dense, channels last, compiled", 1.0),
    )
    assert value("times as fast", "masked", one) == 3.0
    assert value("share of its activation memory", "masked", one) == 0.35
    assert value("time over its own matrix products", "packed", one) == 1.25
    # The fastest eager one; what is compiled does not count here.
    assert value("times as fast", "timm, dense", one) == 2.5


def test_only_documents_that_fit_count_and_the_latest_of_them():
    rows = (row("masked", 3.0), row("packed", 1.0))
    assert value("times as fast", "masked", document(*rows, arch="base")) is None
    assert value("times as fast", "masked", document(*rows, dtype="bf16")) is None
    assert value("times as fast", "masked", document(*rows, repeat=4)) is None
    assert value("times as fast", "masked", document(row("packed", 1.0))) is None
    late = document(row("masked", 4.0), row("packed", 1.0), date="2030-02-01T00:00:00")
    assert value("times as fast", "masked", late, document(*rows)) == 4.0


def test_limits_hold_at_the_limit():
    at_least = Target("", "", "", "", (), "times as fast", at_least=3.0)
    at_most = Target("", "", "", "", (), "share of its time", at_most=0.7)
    assert at_least.is_met(3.0) and not at_least.is_met(2.99)
    assert at_most.is_met(0.7) and not at_most.is_met(0.71)
    assert (at_least.limit, at_most.limit) == (">= 3.00x", "<= 0.70x")


def test_every_target_has_one_limit_and_a_known_quantity():
    for target in TARGETS:
        assert (target.at_least is None) != (target.at_most is None), target.text
        assert isinstance(evaluate([target], [])[0], Target)


def test_the_page(tmp_path):
    left = dict(group="encoder", name="minkowski", reason="MinkowskiEngine is not installed")
    first = document(row("masked", 3.0, 100), row("packed", 1.0, 50), left_out=[left])
    points = [
        row("packed", 1.0 + i, group=f"batch of {i}", point=dict(sweep="batch", value=i))
        for i in (1, 2)
    ]
    second = document(*points, benchmark="scaling")
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for path, one in zip(paths, (first, second), strict=True):
        write_document(one, path)
    assert main(["report", *map(str, paths), "--out", str(tmp_path / "docs")]) == 0
    page = (tmp_path / "docs" / "benchmarks.md").read_text()

    (target,) = (line for line in page.splitlines() if line.startswith("| packed vs masked, enc")
                 and "tiny, batch 8 | times as fast" in line)  # fmt: skip
    cells = [cell.strip() for cell in target.strip("|").split("|")]
    assert cells[2:5] == [">= 3.20x", "3.00x (masked)", "**not reached**"]
    assert "not measured" in page
    assert "- minkowski: MinkowskiEngine is not installed" in page
    assert "2030-01-02; A processor (AVX512), 2 of 2 cores' threads" in page
    assert "python -m scaling" in page
    # Every table has as many cells in each line as in its head.
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    assert len(pictures) == len(set(pictures)) == 2
    for picture in pictures:
        assert (tmp_path / "docs" / picture).read_bytes().startswith(b"\x89PNG")


def test_files_that_are_no_results_are_refused(tmp_path, capsys):
    bad = tmp_path / "bad.json"
    for text in ("{", "[]", json.dumps(dict(schema=99))):
        bad.write_text(text)
        assert main(["report", str(bad), "--out", str(tmp_path / "docs")]) == 1
        assert str(bad) in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.json"), "--out", str(tmp_path / "docs")]) == 1
    assert not (tmp_path / "docs").exists()


def test_plans_of_whole_recipes_stand_below_the_tables(tmp_path):
    write_document(document(row("packed", 1.0)), tmp_path / "one.json")
    (tmp_path / "plan.txt").write_text("processes  whole run\n        8     3 days\n")
    command = ["report", str(tmp_path / "one.json"), "--out", str(tmp_path)]
    assert main(command) == 0
    assert "At scale" not in (tmp_path / "benchmarks.md").read_text()
    assert main([*command, "--plans", str(tmp_path / "plan.txt")]) == 0
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.endswith("```\nprocesses  whole run\n        8     3 days\n```\n")
    assert page.index("## pretrain_step") < page.index("## At scale")


def test_notes_stand_below_the_targets(tmp_path):
    write_document(document(row("packed", 1.0)), tmp_path / "one.json")
    (tmp_path / "notes.md").write_text("## What stands in the way\n")
    command = ["report", str(tmp_path / "one.json"), "--out", str(tmp_path)]
    assert main([*command, "--notes", str(tmp_path / "notes.md")]) == 0
    page = (tmp_path / "benchmarks.md").read_text()
    order = [page.index(part) for part in ("## Targets", "## What stands", "## pretrain_step")]
    assert order == sorted(order)


def test_documents_survive_writing(tmp_path):
    one = document(row("packed", 1.0))
    write_document(one, tmp_path / "new" / "one.json")
    assert read_document(tmp_path / "new" / "one.json") == one


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "one.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_atomically(path, "text in place of bytes")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
