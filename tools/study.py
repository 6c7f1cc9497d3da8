"""Run studies: tables of configs and seeds, resumed where they stopped, with verdicts and pictures.

  tools/study.py --list
  tools/study.py codesign --dry-run      what there is, and how long the rest takes
  tools/study.py codesign masking        train what is missing, write tables and pictures
  tools/study.py all --publish           and put them into docs/evidence.md

The sample set is built first where it is not there. Studies share cells in one work directory; it
holds results of one version of the code and of the configs, and refuses others. The same command
may run several times at once, and each takes the cells that no other has begun: with
OMP_NUM_THREADS=1, one a core is faster than one on all cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from mmconvnextv2.apis.configs import resource_root
from mmconvnextv2.apis.launch import USER_ERRORS
from mmconvnextv2.apis.study import (
    Results,
    StudyMismatchError,
    cell_states,
    check_cells,
    fill_cells,
    train_and_keep_weights,
)
from mmconvnextv2.apis.study_curves import measure_curves
from mmconvnextv2.apis.study_definition import Study, StudyError, list_studies, load_study
from mmconvnextv2.apis.study_identity import code_identity
from mmconvnextv2.apis.study_report import Report, fill_part, write_report
from mmconvnextv2.benchmark.environment import cpu_name
from mmconvnextv2.datasets.sample_set import build_sample_set
from mmconvnextv2.files import write_atomically
from mmconvnextv2.version import __version__

FOLDER = resource_root() / "configs" / "studies" / "sample_set"
SAMPLE_SET = Path("data/sample_set")
PAGE = Path("docs/evidence.md")
PICTURES = "images/evidence"  # below the page's folder
VALUES = "data/evidence"
SEEDS = (0, 1, 2)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="studies to run, or all")
    parser.add_argument("--list", action="store_true", help="name the studies and what they cost")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the studies' files")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/studies"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="(0 1 2)")
    parser.add_argument(
        "--longer",
        type=int,
        default=1,
        metavar="FACTOR",
        help="train all cells so many times as long; takes a work directory of its own",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what there is; train nothing")
    parser.add_argument("--publish", action="store_true", help=f"put finished studies into {PAGE}")
    return parser.parse_args(argv)


def choose(args: argparse.Namespace) -> list[Study]:
    """Read the studies that the command line names.

    Raises:
        ValueError: none is named, or one that there is not.
    """
    files = list_studies(args.folder)
    names = list(files) if args.list or "all" in args.names else args.names
    unknown = sorted(set(names) - set(files))
    if unknown or not names:
        raise ValueError(f"name studies of {', '.join(files)}, or all; got {args.names}")
    return [load_study(files[name], args.longer) for name in names]


def describe(study: Study) -> str:
    """One line: name, cells, cost, title."""
    minutes = sum(study.seconds.values()) / 60
    return f"{study.name:15} {len(study.arms):3} cells a seed, {minutes:4.0f} min   {study.title}"


def describe_cells(study: Study, args: argparse.Namespace) -> str:
    """What there is of each cell, and how long the rest takes."""
    states = cell_states(study.arms, args.seeds, args.work_dir / "cells")
    lines = [f"{arm}, seed {seed}: {state}" for (arm, seed), state in states.items()]
    rest = sum(study.seconds[arm] for (arm, _), s in states.items() if s != "finished")
    counts = ", ".join(f"{n} {state}" for state, n in Counter(states.values()).items())
    return "\n".join([*lines, f"{study.name}: {counts}; about {rest / 60:.0f} min to go"])


def prepare(studies: Sequence[Study], args: argparse.Namespace) -> None:
    """Build the sample set where it is needed, and find out what would stop a study later.

    Raises:
        StudyMismatchError: there are cells of other code or configs.
        ValueError: seeds come twice, or the page marks the place of a study wrongly.
    """
    folders = [path for study in studies for arm in study.arms for path in arm.inputs]
    needed = any(SAMPLE_SET in (path, *path.parents) for path in folders)
    if needed and not (SAMPLE_SET / "sample_set.json").is_file():
        print(f"building {SAMPLE_SET}", flush=True)
        build_sample_set(SAMPLE_SET)
    for study in studies:
        check_cells(study.arms, args.seeds, args.work_dir / "cells")
        if args.publish:
            fill_part(PAGE.read_text(encoding="utf-8"), *place(study, args), "")


def run(study: Study, args: argparse.Namespace) -> tuple[Results, Report]:
    """Train what is missing, and write the report anew after each cell."""
    print(f"\n== {study.title} ==", flush=True)
    cells, folder = args.work_dir / "cells", args.work_dir / study.name

    def report(results: Results) -> None:
        write_report(study, results, args.seeds, folder)

    results = fill_cells(study.arms, args.seeds, cells, train_and_keep_weights, report)
    distances = None if study.curves is None else measure_curves(study.curves, args.seeds, cells)
    done = write_report(study, results, args.seeds, folder, distances)
    print(f"\n{done.body}\n{folder / 'study.md'}")
    return results, done


def place(study: Study, args: argparse.Namespace) -> tuple[str, str]:
    """Name and title of the page's part for a study."""
    if args.longer == 1:
        return study.name, study.title
    return f"{study.name}-x{args.longer}", f"{study.title}, {args.longer} times as long"


def publish(study: Study, results: Results, report: Report, args: argparse.Namespace) -> None:
    """Put tables and pictures between the page's markers, and the values of each seed beside it."""
    name, title = place(study, args)
    target, values = PAGE.parent / PICTURES / name, PAGE.parent / VALUES / f"{name}.json"
    body = report.body
    for picture in report.pictures:
        body = body.replace(f"]({picture.name})", f"]({PICTURES}/{name}/{picture.name})")
    link = f"[Values of each seed]({VALUES}/{values.name})."
    text = f"{study.question}\n\n{provenance(study, results, args)} {link}\n\n{body}"
    page = fill_part(PAGE.read_text(encoding="utf-8"), name, title, text)
    target.mkdir(parents=True, exist_ok=True)
    for picture in report.pictures:
        shutil.copyfile(picture, target / picture.name)
    values.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.work_dir / study.name / "study.json", values)
    write_atomically(PAGE, page.encode())
    print(f"{PAGE}: {name}")


def provenance(study: Study, results: Results, args: argparse.Namespace) -> str:
    """What was run, when and where."""
    seconds = [cell["computing_seconds"] for cells in results.values() for cell in cells.values()]
    longer = "" if args.longer == 1 else f" --longer {args.longer}"
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    code = code_identity()["mmconvnextv2"][:8]
    return (
        f"`python tools/study.py {study.name}{longer}` on {date.today()}: {len(seconds)} cells, "
        f"{len(args.seeds)} seeds, {sum(seconds) / 60:.0f} minutes of one "
        f"{'GPU' if gpu else 'core'}; {gpu}{cpu_name()}, {os.cpu_count()} cores; "
        f"mmconvnextv2 {__version__} (code {code}), torch {torch.__version__}, "
        f"Python {platform.python_version()}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line for what the user can put right."""
    args = parse_args(argv)
    try:
        studies = choose(args)
        if args.list:
            print("\n".join(describe(study) for study in studies))
            return 0
        if args.dry_run:
            print("\n".join(describe_cells(study, args) for study in studies))
            return 0
        prepare(studies, args)
    except (ValueError, *USER_ERRORS) as error:
        print(f"study.py: {error}", file=sys.stderr)
        return 2
    try:
        for study in studies:
            results, report = run(study, args)
            if args.publish:
                publish(study, results, report, args)
    except (StudyError, StudyMismatchError, *USER_ERRORS) as error:
        print(f"study.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
