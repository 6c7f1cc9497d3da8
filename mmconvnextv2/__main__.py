"""`python -m mmconvnextv2`, the same as the command `mmconvnextv2`."""

import sys

from mmconvnextv2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
