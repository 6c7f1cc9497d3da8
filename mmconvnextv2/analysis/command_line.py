"""What the tools that look into encoders have in common: options, progress, tables."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmconvnextv2.analysis.encoders import Encoder, load_encoder
from mmconvnextv2.analysis.image_batches import ImageBatches
from mmconvnextv2.datasets.image_scan import describe_bad
from mmconvnextv2.files import write_atomically


def make_parser(description: str | None, images: str, out_dir: str) -> argparse.ArgumentParser:
    """Make a parser with the options that all of these tools have.

    Args:
        description: what the tool does.
        images: help on the folder of images.
        out_dir: default folder of what the tool writes.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="CONFIG is any config with a backbone: of pre-training, a classifier, detector or "
        "segmentor.\nIts data preprocessor says how images are normalised.",
    )
    parser.add_argument("images", type=Path, help=images)
    parser.add_argument(
        "--model",
        dest="models",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "CONFIG", "CHECKPOINT"),
        help="an encoder: its name in tables and pictures, its config, and a file with its "
        "weights (path, URL or hub id); several times to compare",
    )
    parser.add_argument("--image-size", type=int, default=224, help="side in pixels (224)")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a batch (32)")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that read (4)")
    parser.add_argument("--device", default="cpu", help="where to run, for example cuda:0 (cpu)")
    parser.add_argument("--out-dir", type=Path, default=Path(out_dir), help=f"({out_dir})")
    return parser


def load_encoders(args: argparse.Namespace) -> list[Encoder]:
    """Load the encoders of a command line.

    Raises:
        ValueError: two have the same name, or one cannot be loaded.
        FileNotFoundError: a config or checkpoint is not there.
    """
    names = [name for name, _, _ in args.models]
    if len(set(names)) < len(names):
        raise ValueError(f"each --model needs a name of its own, got {', '.join(names)}")
    return [
        load_encoder(name, config, checkpoint, args.device)
        for name, config, checkpoint in args.models
    ]


def read_images(
    encoder: Encoder, paths: Sequence[str], args: argparse.Namespace
) -> Iterator[tuple[list[int], Tensor]]:
    """Read images for an encoder as a command line says, with a progress bar on a terminal.

    Yields:
        Positions in `paths`, and images ``(N, C, H, W)``. What cannot be read is left out, and
        named on stderr in the end.

    Raises:
        ValueError: none can be read, or an option is outside what is allowed.
    """
    console = Console(stderr=True)
    batches = ImageBatches(encoder, paths, args.image_size, args.batch_size, args.num_workers)
    yield from track(batches, encoder.name, console=console, disable=not console.is_terminal)
    if batches.unreadable:
        print(
            f"{len(batches.unreadable):,} files cannot be read and are left out:\n"
            f"{describe_bad(batches.unreadable)}",
            file=sys.stderr,
        )


def describe_models(args: argparse.Namespace) -> list[dict[str, str]]:
    """Name, config and checkpoint of each encoder, for the JSON file."""
    return [
        dict(zip(("name", "config", "checkpoint"), model, strict=True)) for model in args.models
    ]


def write_tables(
    stem: str | os.PathLike[str], content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write ``<stem>.json`` with everything, and ``<stem>.csv`` with the rows of a table.

    Args:
        stem: path without suffix.
        content: of the JSON file.
        rows: of the CSV file, with the same keys in all; floats are written with 6 digits.

    Returns:
        The paths of both.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return [
        write_atomically(
            f"{os.fspath(stem)}.json", (json.dumps(content, indent=1) + "\n").encode()
        ),
        write_atomically(f"{os.fspath(stem)}.csv", table.getvalue().encode()),
    ]


def run_tool(
    name: str, make: Callable[[argparse.Namespace], list[str]], args: argparse.Namespace
) -> int:
    """Run a tool and print what it has to say.

    Args:
        name: file name of the tool.
        make: called with the options; returns lines for people.
        args: the options.

    Returns:
        Exit status: 0, or 2 with one line on stderr for what the user can put right.
    """
    try:
        lines = make(args)
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0
