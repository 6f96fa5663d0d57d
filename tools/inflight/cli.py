"""The `inflight` command. Each subcommand is a module of inflight.commands, imported only when it is run.

A command module has add_arguments(parser) and run(args) -> exit code.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from inflight import __version__
from inflight.errors import InflightError

# Name -> one line of help.
COMMANDS: dict[str, str] = {
    "build": "write the engine folder (plan.json) of a Hugging Face checkpoint",
    "inspect": "print the network of an engine folder or a checkpoint",
    "generate": "continue a prompt in the terminal, without a server",
    "bench": "measure the executor, or a running server, under load",
    "soak": "load a server with clients of every kind and check every answer",
    "demo": "stream a completion of the demo model through a real tritonserver",
    "openai": "OpenAI's HTTP interface in front of a running server",
    "serve": "leave a tritonserver with a model up until Ctrl-C",
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="inflight", description="Serve large language models through Triton.")
    parser.add_argument("--version", action="version", version=f"inflight {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            import_module(f".commands.{name}", __package__).add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        return import_module(f".commands.{args.command}", __package__).run(args)
    except (InflightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
