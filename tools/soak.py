"""Try every fault many times; a run that passes whole is written into docs/reliability.md.

It runs the tests with the marker `fault`, whose long versions the environment variable
MMCONVNEXTV2_SOAK switches on, and those with the marker `soak`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from mmconvnextv2.benchmark.environment import cpu_name, installed_version
from mmconvnextv2.files import write_atomically
from mmconvnextv2.version import __version__

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
PROMISES = range(1, 12)
TEST_SECONDS = 4 * 3600
PACKAGES = {
    "torch": ("torch",),
    "mmengine": ("onedl-mmengine", "mmengine"),
    "pillow": ("pillow",),
    "hypothesis": ("hypothesis",),
}


@dataclass
class Fault:
    """One row of the table.

    Attributes:
        promise: number of the promise on the page.
        tried: what was done to the run.
        outcome: what came of it.
        tests: paths of the test functions, relative to the checkout.
        times: how often.
        measured: figures that the tests recorded.
    """

    promise: int
    tried: str
    outcome: str
    tests: list[str] = field(default_factory=list)
    times: int = 0
    measured: list[str] = field(default_factory=list)

    def row(self) -> str:
        """The row in Markdown."""
        outcome = "; ".join([self.outcome, *self.measured])
        tests = "<br>".join(f"`{test}`" for test in self.tests)
        return f"| {self.promise} | {self.tried} | {self.times:,} | {outcome} | {tests} |"


def read_report(path: Path) -> list[Fault]:
    """Collect the faults that passed from pytest's report in JUnit's format.

    A test counts as often as its property `times` says, once without one. Tests of one fault, and
    the cases of one test, make one row.

    Returns:
        The rows, by promise.
    """
    faults: dict[tuple[int, str], Fault] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        properties = [(item.get("name"), item.get("value")) for item in case.iter("property")]
        said = dict(properties)
        if "promise" not in said or {child.tag for child in case} & {"skipped", "failure", "error"}:
            continue
        key = (int(said["promise"]), said["tried"])
        fault = faults.setdefault(key, Fault(*key, said["outcome"]))
        fault.times += sum(int(value) for name, value in properties if name == "times") or 1
        fault.measured += [value for name, value in properties if name == "measured"]
        if said["test"] not in fault.tests:
            fault.tests.append(said["test"])
    return sorted(faults.values(), key=lambda fault: fault.promise)


def write_table(faults: Sequence[Fault], seconds: float) -> str:
    """The table in Markdown, below the date, the machine and the versions."""
    versions = (installed_version(names) for names in PACKAGES.values())
    lines = [
        f"`make soak` on {date.today()}: {len(faults)} kinds of faults, "
        f"{sum(fault.times for fault in faults):,} tries, none lost, in "
        f"{seconds / 60:.0f} minutes; "
        f"{cpu_name()}, {os.cpu_count()} cores; mmconvnextv2 {__version__}, "
        f"Python {platform.python_version()}, {', '.join(v for v in versions if v)}.",
        "",
        "| promise | what was tried | times | outcome | test, under `tests/` |",
        "|---|---|---|---|---|",
        *(fault.row() for fault in faults),
    ]
    return "\n".join(lines)


def replace_table(page: str, table: str) -> str:
    """Put a table between the page's markers.

    Raises:
        ValueError: the page has not each marker once, in their order.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{PAGE} must have the lines {BEGIN} and {END} once each")
    return pattern.sub(lambda _: f"{BEGIN}\n{table}\n{END}", page)


def without_test(faults: Iterable[Fault]) -> list[int]:
    """Numbers of the promises that no test stands for."""
    return sorted(set(PROMISES) - {fault.promise for fault in faults})


def run_tests(report: Path, arguments: Sequence[str]) -> int:
    """Run the long tests; returns pytest's exit status."""
    command = [
        *(sys.executable, "-m", "pytest", "-m", "fault or soak", f"--junitxml={report}"),
        *("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"),
        *(f"--timeout={TEST_SECONDS}", *arguments),
    ]
    environment = {**os.environ, "MMCONVNEXTV2_SOAK": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main() -> int:
    """Exit status: pytest's, or 1 where all tests passed and a promise has none."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, "\nArguments are passed on to pytest; with any, the page stays as it is.")
        return 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        status = run_tests(report, arguments)
        faults = read_report(report) if report.is_file() else []
    if status:
        print(f"{PAGE.name} stays as it is: the tests did not all pass", file=sys.stderr)
        return status
    table = write_table(faults, time.monotonic() - start)
    print(table)
    if arguments:
        print(f"{PAGE.name} stays as it is: this was a selection", file=sys.stderr)
        return 0
    if missing := without_test(faults):
        print(f"no test that passed stands for the promises {missing}", file=sys.stderr)
        return 1
    write_atomically(PAGE, replace_table(PAGE.read_text("utf-8"), table).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
