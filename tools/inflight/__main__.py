"""python -m inflight: the command line."""

import sys

from inflight.cli import main

if __name__ == "__main__":
    sys.exit(main())
