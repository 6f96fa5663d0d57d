"""Prints the pinned requirements of pyproject.toml: `requirements.py build server test` -> one requirement a line.

pip installs the dependencies of a project only together with the project itself; here the project is built in place.
"""

import pathlib
import sys

try:
    import tomllib
except ImportError:  # Python 3.10: pip carries the same parser
    from pip._vendor import tomli as tomllib


def main() -> None:
    document = tomllib.loads((pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text())
    groups = {"build": document["build-system"]["requires"], **document["project"]["optional-dependencies"]}
    print("\n".join(document["project"]["dependencies"]))
    for name in sys.argv[1:]:
        print("\n".join(groups[name]))


if __name__ == "__main__":
    main()
