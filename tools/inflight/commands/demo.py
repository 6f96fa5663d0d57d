"""inflight demo: a completion streamed through a real server, with what the client measured."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from inflight.errors import InflightError
from inflight.serve import launch
from inflight.serve.client import Stream, StreamTimes
from inflight.serve.locate import PACKAGE
from inflight.serve.server import Ports, TritonServer

DEMO_MODEL = PACKAGE.parent.parent / "tests/demo_model/python-7m"
PROMPT = '''\
class Stack:
    """A list of items, last in, first out."""

    def __init__(self'''
# A small model repeats itself when decoded greedily; this makes it write something that looks like code.
SAMPLING = {"temperature": 0.6, "top_p": 0.9, "top_k": None, "repetition_penalty": 1.1, "seed": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="engine or checkpoint folder (default: the demo model)")
    parser.add_argument("--prompt", default=PROMPT, help="text to continue (default: the head of a Python class)")
    parser.add_argument("--max-tokens", type=int, default=96, help="default: %(default)s")
    for name, value in SAMPLING.items():
        kind = int if name in ("top_k", "seed") else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help="default: %(default)s")
    launch.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    console = Console(highlight=False)
    model = args.model or DEMO_MODEL
    if not model.is_dir():
        raise InflightError(f"no model at {model}: name an engine or checkpoint folder with --model")
    with launch.running_server(args, model, Ports.free(), "127.0.0.1", console) as server:
        console.print(f"[green]ready[/] {model.name} on a tritonserver at {server.grpc_url}, gRPC streaming\n")
        times = show_stream(args, server, console)
    if times.arrivals:
        console.print(measurements(times))
    return 0


def show_stream(args: argparse.Namespace, server: TritonServer, console: Console) -> StreamTimes:
    """Prints the completion as it arrives."""
    for _ in Stream(server.grpc_url, args.prompt, max_tokens=1):  # wakes up the tokenizer and the detokenizer
        pass
    console.print(args.prompt, style="bold", end="", markup=False, soft_wrap=True)
    sampling = {name: getattr(args, name) for name in SAMPLING}
    answer = Stream(server.grpc_url, args.prompt, args.max_tokens, **sampling)
    for text in answer:
        console.print(text, style="cyan", end="", markup=False, soft_wrap=True)
        console.file.flush()
    console.print("\n")
    return answer.times


def measurements(times: StreamTimes) -> Table:
    table = Table(title="measured at the client, after a request to warm up", title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    rows = {
        "tokens": f"{len(times.arrivals)}",
        "time to first token": f"{times.first_token_s * 1e3:.1f} ms",
        "between tokens, median": f"{times.gap_s(0.5) * 1e3:.2f} ms",
        "between tokens, 99 %": f"{times.gap_s(0.99) * 1e3:.2f} ms",
        "whole answer": f"{times.total_s * 1e3:.0f} ms",
        "tokens/s": f"{times.tokens_per_s:.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
