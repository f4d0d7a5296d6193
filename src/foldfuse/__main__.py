"""Runs the command line as `python -m foldfuse`, for torchrun and where no console script is installed."""

import sys

from foldfuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
