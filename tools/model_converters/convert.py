"""Convert a ConvNeXt V2 checkpoint from one publisher's layout to another's.

The source is recognised from the names of the tensors. What the target has no place for is listed.
IN is a file, a URL or a Hugging Face hub id, for example hf://timm/convnextv2_atto.fcmae_ft_in1k.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmconvnextv2.checkpoint import (
    PUBLISHERS,
    convert_state_dict,
    fetch_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

ENTRY = {"official": "model", "official-sparse": "model", "timm": None, "transformers": None}
"""Where a publisher's own code looks for the tensors in a file; "state_dict" for the others."""

LICENCE = (
    "licence: weights published by the ConvNeXt V2 authors, and conversions of them, are "
    "CC-BY-NC 4.0 (non-commercial), whoever distributes them; a conversion changes no licence"
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="checkpoint: path, URL or hf://org/name")
    parser.add_argument("output", metavar="OUT", help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--from", dest="source", choices=PUBLISHERS, help="layout of IN (default: recognised)"
    )
    parser.add_argument("--to", dest="target", choices=PUBLISHERS, required=True)
    parser.add_argument("--sha256", help="what IN has to have: all of it, or 8 or more digits")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Convert, and say what became of every tensor; exit status 1, and no file, after an error."""
    args = parse_args(argv)
    try:
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
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(conversion.summary())
    print(LICENCE)
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
