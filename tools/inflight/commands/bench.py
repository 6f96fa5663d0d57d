"""inflight bench ENGINE: output tokens/s and latencies of the executor, or of a running server with --url."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from inflight import plan
from inflight.bench.measure import Workload, summarize
from inflight.tokenizer import Tokenizer

COLUMNS = {
    "isl": "in",
    "osl": "out",
    "n": "requests",
    "concurrency": "at a time",
    "out_tok_s": "output tok/s",
    "ttft_ms_p50": "TTFT p50 ms",
    "ttft_ms_p99": "TTFT p99 ms",
    "tpot_ms_mean": "TPOT mean ms",
    "tpot_ms_p99": "TPOT p99 ms",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder or Hugging Face checkpoint")
    parser.add_argument("--url", help="gRPC address of a running server, e.g. 127.0.0.1:8001; default: in this process")
    parser.add_argument("--model", default="ensemble", help="with --url: the model to ask (default: %(default)s)")
    parser.add_argument("--input-length", type=int, default=64, help="tokens (default: %(default)s)")
    parser.add_argument("--output-length", type=int, default=128, help="tokens (default: %(default)s)")
    parser.add_argument("--requests", type=int, help="default: 4 times the concurrency, at least 8")
    parser.add_argument("--concurrency", default="1,32", help="requests at a time; a list runs one after the other")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the executor (default: all processors)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line a run")


def run(args: argparse.Namespace) -> int:
    vocabulary = plan.read(plan.ensure(args.engine))["network"]["vocabulary_size"]
    rows = []
    console = Console(highlight=False)
    with console.status("Measuring ..."), _load_generator(args) as measure:
        measure(Workload(vocabulary, args.input_length, 16, 4, 2, seed=1))  # warm up
        for concurrency in map(int, args.concurrency.split(",")):
            requests = args.requests or max(8, 4 * concurrency)
            workload = Workload(vocabulary, args.input_length, args.output_length, requests, concurrency)
            rows.append(summarize(workload, *measure(workload)))
    target = f"{args.model} at {args.url}, gRPC streaming" if args.url else "the executor in this process"
    console.print(_table(f"{args.engine.name}: {target}", rows))
    if args.json:
        with args.json.open("a") as file:
            for row in rows:
                file.write(json.dumps(dict(engine="inflight", model=args.engine.name, target=target) | row) + "\n")
    return 0


class _load_generator:
    """Context manager whose value runs a workload: the executor lives as long as it does."""

    def __init__(self, args: argparse.Namespace):
        self._args = args
        self._executor = None

    def __enter__(self):
        if self._args.url:
            from inflight.bench import server

            tokenizer = Tokenizer.from_folder(self._args.engine)
            return lambda workload: server.run(self._args.url, self._args.model, tokenizer, workload)
        from inflight.bench import offline
        from inflight.executor import Executor

        self._executor = Executor(self._args.engine, num_threads=self._args.threads)
        return lambda workload: offline.run(self._executor, workload)

    def __exit__(self, *exception: object) -> None:
        if self._executor:
            self._executor.close()


def _table(title: str, rows: list[dict[str, float]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(f"{row[key]:,}" if key in row else "-" for key in COLUMNS))
    return table
