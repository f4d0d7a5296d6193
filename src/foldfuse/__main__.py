"""`python -m foldfuse` is `foldfuse`: for torchrun, and where no console script was installed."""

import sys

from foldfuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
