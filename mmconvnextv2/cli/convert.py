"""Convert a checkpoint from one publisher's layout to another's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmconvnextv2.cli.arguments import Parser, command_parser

PUBLISHERS = ("mmconvnextv2", "mmpretrain", "timm", "transformers", "official", "official-sparse")

ENTRY = {"official": "model", "official-sparse": "model", "timm": None, "transformers": None}
"""Where a publisher's own code looks for the tensors in a file; "state_dict" for the others."""

LICENCE = (
    "licence: weights published by the ConvNeXt V2 authors, and conversions of them, are "
    "CC-BY-NC 4.0 (non-commercial), whoever distributes them; a conversion changes no licence"
)


def parser() -> Parser:
    """The command's parser."""
    made = command_parser(
        "convert",
        "IN OUT --to LAYOUT [--from LAYOUT] [--sha256 HEX]",
        __doc__,
        f"layouts: {', '.join(PUBLISHERS)}\nWhat the target has no place for is listed.",
    )
    add = made.add_argument
    add(
        "input", metavar="IN", help="file, URL or hf://org/name, as hf://timm/convnextv2_atto.fcmae"
    )
    add("output", metavar="OUT", help="file to write, .pth or .safetensors")
    add("--to", dest="target", choices=PUBLISHERS, required=True, metavar="LAYOUT", help="of OUT")
    add(
        "--from",
        dest="source",
        choices=PUBLISHERS,
        default=None,
        metavar="LAYOUT",
        help="of IN (recognised from the names of its tensors)",
    )
    add(
        "--sha256",
        default=None,
        metavar="HEX",
        help="what IN has to have: all of it, or 8 or more digits",
    )
    return made


def run(argv: Sequence[str]) -> int:
    """Convert, and say what became of every tensor; after an error there is no file."""
    args = parser().parse_args(argv)
    from mmconvnextv2.checkpoint import (
        convert_state_dict,
        fetch_checkpoint,
        read_checkpoint,
        write_checkpoint,
    )

    file = fetch_checkpoint(args.input, args.sha256)
    conversion = convert_state_dict(read_checkpoint(file), args.source, args.target)
    meta = dict(
        source=args.input if "://" in args.input else file.name,
        converted_from=conversion.source,
        arch=conversion.arch,
        depths=list(conversion.depths),
        channels=list(conversion.channels),
    )
    entry = ENTRY.get(args.target, "state_dict")
    write_checkpoint(args.output, conversion.state_dict, entry, meta)
    print(conversion.summary())
    print(LICENCE)
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB")
    return 0
