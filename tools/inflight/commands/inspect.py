"""inflight inspect DIR"""

import argparse
from pathlib import Path

from inflight.inspect import inspect


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("path", type=Path, help="engine folder or Hugging Face checkpoint folder")


def run(args: argparse.Namespace) -> int:
    inspect(args.path)
    return 0
