"""The command `mmconvnextv2 convert`, from a checkout."""

from __future__ import annotations

import sys

from mmconvnextv2.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
