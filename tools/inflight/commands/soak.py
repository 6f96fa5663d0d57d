"""inflight soak MODEL: clients of every kind at a server, and whether each got exactly what it should."""

import argparse
import asyncio
import json
import random
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from inflight import plan
from inflight.serve import launch
from inflight.serve.server import Ports, TritonServer
from inflight.soak.cases import ENGINE_MODEL, Case, draw_cases
from inflight.soak.clients import KINDS, VERDICTS
from inflight.soak.run import Settings, Tally, soak
from inflight.soak.watch import resident_bytes
from inflight.soak.wire import Addresses
from inflight.tokenizer import Tokenizer, tokenizer_folder

MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", metavar="MODEL", type=Path, help="engine folder or checkpoint that the server has")
    parser.add_argument("--model", default=ENGINE_MODEL, help="name in the repository (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=200, help="at a time (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--cases", type=int, default=128, help="different requests (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=200, help="tokens of prompt and answer (default: %(default)s)")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="s without a response: lost (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    parser.add_argument("--max-growth", type=float, default=16.0, help="MiB in the second half (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures as one line")
    server = parser.add_argument_group("a running server (default: one of its own is started)")
    server.add_argument("--host", help="its address")
    for kind in ("http", "grpc", "metrics"):
        server.add_argument(f"--{kind}-port", type=int, default=getattr(Ports(), kind), help="default: %(default)s")
    server.add_argument("--pid", type=int, help="its process on this machine, to watch the memory")
    launch.add_arguments(parser.add_argument_group("the server that is started"))


def run(args: argparse.Namespace) -> int:
    console = Console(highlight=False, soft_wrap=True)
    settings = Settings(args.model, args.streams, 60 * args.minutes, args.seed, args.patience)
    cases = _cases(args)
    with ExitStack() as stack:
        addresses, pid = _server(args, console, stack)
        console.print(f"Asking {len(cases)} requests alone, then {args.streams} at a time for {args.minutes:g} min")
        tally = asyncio.run(soak(settings, addresses, cases, pid, lambda *now: _show_progress(console, *now)))
    failed = tally.failed(args.max_growth * MIB)
    _show(console, tally)
    if args.json:
        with args.json.open("a") as lines:
            lines.write(json.dumps(_figures(tally) | {"failed": failed}) + "\n")
    console.print(f"[red]FAILED: {'; '.join(failed)}[/]" if failed else "[green]nothing lost, doubled or wrong[/]")
    return 1 if failed else 0


def _cases(args: argparse.Namespace) -> list[Case]:
    engine_dir = plan.ensure(args.engine)
    network = plan.read(engine_dir)["network"]
    longest = min(args.longest, network["max_positions"] // 2 - 1)
    cases = draw_cases(args.cases, network["vocabulary_size"], longest, random.Random(args.seed))
    if args.model == ENGINE_MODEL:
        return cases
    tokenizer = Tokenizer.from_folder(tokenizer_folder(engine_dir))
    # Some token in front that is text: special ones give none.
    return [replace(case, prompt="text: " + tokenizer.decode(case.prompt)) for case in cases]


def _server(args: argparse.Namespace, console: Console, stack: ExitStack) -> tuple[Addresses, int | None]:
    if args.host:
        ports, host, pid = Ports(args.http_port, args.grpc_port, args.metrics_port), args.host, args.pid
    else:
        ports, host = Ports.free(), "127.0.0.1"
        server: TritonServer = stack.enter_context(launch.running_server(args, args.engine, ports, host, console))
        pid = server.pid
    return Addresses(f"{host}:{ports.grpc}", f"{host}:{ports.http}", f"{host}:{ports.metrics}"), pid


def _show_progress(console: Console, tally: Tally, seconds: float) -> None:
    memory = f", server {resident_bytes(tally.memory.pid) / MIB:.1f} MiB" if tally.memory else ""
    bad = sum(tally.of(it) for it in ("lost", "duplicated", "wrong"))
    console.print(
        f"{seconds:6.0f} s  {tally.total} requests, {tally.pieces} responses ({tally.pieces / seconds:.0f}/s), "
        f"{bad} lost, duplicated or wrong{memory}"
    )


def _show(console: Console, tally: Tally) -> None:
    table = Table(title=f"{tally.total} requests in {tally.seconds:.0f} s", title_justify="left")
    table.add_column("clients that")
    for verdict in VERDICTS:
        table.add_column(verdict, justify="right")
    for kind in KINDS:
        table.add_row(kind, *(str(tally.counts[kind, verdict]) for verdict in VERDICTS))
    console.print(table)
    if tally.memory and tally.memory.samples:
        first, last = (tally.memory.samples[index][1] / MIB for index in (0, -1))
        console.print(f"memory of the server: {first:.1f} MiB, at the end {last:.1f} MiB; second half: ", end="")
        console.print(f"{tally.memory.slope * 3600 / MIB:+.2f} MiB an hour")
    held = ", ".join(tally.held_back) or "no sequence, every KV block is free"
    console.print(f"left at the end: {held}", markup=False)
    for failure in tally.failures:
        console.print(f"{failure.kind}, {failure.verdict}: {failure.detail}"[:2000], markup=False)


def _figures(tally: Tally) -> dict:
    memory = tally.memory
    return {
        "requests": tally.total,
        "seconds": round(tally.seconds, 1),
        "responses": tally.pieces,
        **{verdict: tally.of(verdict) for verdict in VERDICTS},
        "memory_mib": [round(size / MIB, 1) for _, size in memory.samples] if memory else None,
        "slope_mib_per_hour": round(memory.slope * 3600 / MIB, 3) if memory else None,
    }
