#!/usr/bin/env python3
"""Fills in the variables of a model configuration: fill_template.py FILE "key:value,key:value" [-i]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inflight.serve.template import DEFAULTS, fill, parse_substitutions, split, unparsable_variables

__all__ = ["main", "split"]


def main(file_path: str, substitutions: str, in_place: bool) -> None:
    path = Path(file_path)
    text = fill(path.read_text(encoding="utf-8"), parse_substitutions(substitutions))
    if left := unparsable_variables(text):
        print(f"{path}: still to be filled before the server can read it: {', '.join(left)}", file=sys.stderr)
    if in_place:
        path.write_text(text, encoding="utf-8")
    else:
        print(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    defaults = ", ".join(f"{key}:{value}" for key, value in DEFAULTS.items())
    parser = argparse.ArgumentParser(
        description="Fills in the ${variables} of a config.pbtxt. Unknown ones stay in place: string parameters that "
        f"are left so take their default. These are filled when they are not given: {defaults}."
    )
    parser.add_argument("file_path", help="path of the .pbtxt to fill")
    parser.add_argument(
        "substitutions", help="key:value pairs, separated by commas; write \\, and \\: for the characters themselves"
    )
    parser.add_argument("-i", "--in_place", action="store_true", help="change the file instead of printing it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(**vars(parse_arguments()))
    except (OSError, ValueError) as error:
        sys.exit(f"fill_template.py: {error}")
