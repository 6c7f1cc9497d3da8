"""Find exact and near duplicates between two folders of images, or within one.

With FOLDER alone, duplicates in it. With OTHER, the images of OTHER that are copies of one in
FOLDER: give the images that a model is judged on as OTHER. With --held-out-share, the same for the
two parts into which pre-training splits FOLDER.

Near duplicates are copies that were scaled, compressed, brightened, mirrored or turned by 90
degrees; crops and small shifts are not found. Any bit depth and number of channels will do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from mmconvnextv2.analysis.duplicates import Fingerprint, Match, find_matches, fingerprint
from mmconvnextv2.datasets.image_reading import UnreadableImageError, read_image
from mmconvnextv2.datasets.image_scan import (
    TooFewImagesError,
    describe_bad,
    resolve_folder,
    scan_folder,
)
from mmconvnextv2.datasets.raster_reading import RASTER_SUFFIXES, read_raster
from mmconvnextv2.datasets.split_image_folder import GroupBy, is_held_out
from mmconvnextv2.files import write_atomically
from mmconvnextv2.visualization.duplicates import draw_pairs
from mmconvnextv2.visualization.files import save_png

PICTURED = 24
NAMED = 10


class Images(NamedTuple):
    """Readable images of a folder, what is remembered of them, and why the others are missing."""

    paths: list[str]
    fingerprints: list[Fingerprint]
    unreadable: dict[str, str]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="images, such as those for pre-training")
    parser.add_argument("other", type=Path, nargs="?", help="images to look for in FOLDER")
    parser.add_argument(
        "--held-out-share", type=float, help="split FOLDER as pre-training does, e.g. 0.05"
    )
    parser.add_argument(
        "--group-by",
        choices=["file", "folder"],
        default="file",
        help="unit of that split (file)",
    )
    parser.add_argument(
        "--min-similarity",
        type=float,
        default=0.95,
        help="cosine from which two images count as near duplicates, up to 1 (0.95)",
    )
    parser.add_argument(
        "--out-dir", type=Path, default=Path("work_dirs/duplicates"), help="report and picture"
    )
    parser.add_argument("--num-workers", type=int, default=4, help="threads that read (4)")
    return parser.parse_args(argv)


def list_images(folder: Path) -> list[str]:
    """All images below a folder, in a fixed order.

    Raises:
        FileNotFoundError: there is no such folder.
        TooFewImagesError: it has no image.
    """
    return list(scan_folder(resolve_folder(folder), RASTER_SUFFIXES).images)


def read_any(path: str) -> NDArray:
    """Read an image as it is stored; what has no plain channels (CMYK, for example) as 8-bit RGB.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    try:
        return read_raster(path)
    except UnreadableImageError as error:
        if path.lower().endswith(".npy"):
            raise
        try:
            return read_image(path)
        except UnreadableImageError:
            raise error from None


def read_fingerprints(paths: list[str], num_workers: int, text: str) -> Images:
    """Read images, several at a time.

    Raises:
        TooFewImagesError: none can be read.
    """

    def try_one(path: str) -> Fingerprint | str:
        try:
            return fingerprint(read_any(path))
        except UnreadableImageError as error:
            return error.reason

    console = Console(stderr=True)
    with ThreadPoolExecutor(num_workers) as pool:
        results = list(
            track(
                pool.map(try_one, paths),
                text,
                total=len(paths),
                console=console,
                disable=not console.is_terminal,
            )
        )
    bad = {p: r for p, r in zip(paths, results, strict=True) if isinstance(r, str)}
    good = {p: r for p, r in zip(paths, results, strict=True) if not isinstance(r, str)}
    if not good:
        raise TooFewImagesError(f"no readable image:\n{describe_bad(bad)}")
    return Images(list(good), list(good.values()), bad)


def split(
    paths: list[str], root: Path, share: float, group_by: GroupBy
) -> tuple[list[str], list[str]]:
    """Training and held-out part of a folder, as `SplitImageFolder` has them.

    Raises:
        ValueError: the share is outside of (0, 1), or a part is empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"--held-out-share must lie strictly between 0 and 1, got {share}")

    def held_out(path: str) -> bool:
        return is_held_out(Path(path).relative_to(root).as_posix(), share, group_by)

    parts = [p for p in paths if not held_out(p)], [p for p in paths if held_out(p)]
    if not all(parts):
        raise TooFewImagesError(
            f"--held-out-share {share} leaves one part of {len(paths)} images empty"
        )
    return parts


def search(args: argparse.Namespace) -> tuple[Images, Images, list[Match]]:
    """Do what the command line asks for; returns references, queries and matches."""
    if args.other is not None and args.held_out_share is not None:
        raise ValueError("give OTHER or --held-out-share, not both")
    paths = list_images(args.folder)
    if args.held_out_share is not None:
        root = resolve_folder(args.folder)
        paths, others = split(paths, root, args.held_out_share, args.group_by)
    else:
        others = [] if args.other is None else list_images(args.other)
    references = read_fingerprints(paths, args.num_workers, "reading")
    if not others:
        found = find_matches(references.fingerprints, min_similarity=args.min_similarity)
        return references, references, found
    queries = read_fingerprints(others, args.num_workers, "reading the others")
    found = find_matches(
        queries.fingerprints, references.fingerprints, min_similarity=args.min_similarity
    )
    return references, queries, found


def write_report(
    references: Images, queries: Images, matches: list[Match], out_dir: Path
) -> list[Path]:
    """Write duplicates.json, the list duplicates.txt, and a picture where there is a match."""
    records = [
        dict(
            image=queries.paths[match.query],
            copy_of=references.paths[match.reference],
            exact=match.exact,
            similarity=round(match.similarity, 4),
            orientation=match.orientation,
        )
        for match in matches
    ]
    unreadable = {**references.unreadable, **queries.unreadable}
    content = dict(
        compared_with=len(references.paths),
        images=len(queries.paths),
        unreadable=unreadable,
        duplicates=records,
    )
    listing = "".join(f"{record['image']}\n" for record in records)
    files = [
        write_atomically(
            out_dir / "duplicates.json", (json.dumps(content, indent=2) + "\n").encode()
        ),
        write_atomically(out_dir / "duplicates.txt", listing.encode()),
    ]
    # The least similar ones first: whether these are copies is for people to judge.
    shown = sorted(matches, key=lambda match: match.similarity)[:PICTURED]
    picture = out_dir / "duplicates.png"
    if shown:
        pairs = [
            (
                read_any(queries.paths[match.query]),
                read_any(references.paths[match.reference]),
                "same pixels" if match.exact else f"{match.similarity:.3f} {match.orientation}",
            )
            for match in shown
        ]
        files.append(save_png(draw_pairs(pairs), picture))
    else:
        picture.unlink(missing_ok=True)
    return files


def summary(references: Images, queries: Images, matches: list[Match]) -> str:
    """Lines for people."""
    exact = sum(match.exact for match in matches)
    among = "among themselves" if queries is references else f"in {len(references.paths):,} others"
    lines = [
        f"{len(matches):,} of {len(queries.paths):,} images have a duplicate {among}: "
        f"{exact:,} with the same pixels, {len(matches) - exact:,} near"
    ]
    lines += [
        f"  {queries.paths[match.query]} = {references.paths[match.reference]} "
        f"({'same pixels' if match.exact else f'{match.similarity:.3f}, {match.orientation}'})"
        for match in matches[:NAMED]
    ]
    if len(matches) > NAMED:
        lines.append(f"  and {len(matches) - NAMED:,} more")
    unreadable = {**references.unreadable, **queries.unreadable}
    if unreadable:
        lines.append(f"{len(unreadable):,} files cannot be read:\n{describe_bad(unreadable)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a search, 2 with one line for what the user can put right."""
    args = parse_args(argv)
    try:
        references, queries, matches = search(args)
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        print(f"find_duplicates.py: {error}", file=sys.stderr)
        return 2
    print(summary(references, queries, matches))
    for path in write_report(references, queries, matches, args.out_dir):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
