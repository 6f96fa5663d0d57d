"""inflight bench MODEL: tokens/s, latencies and share of the machine's limit, of the executor or a running server."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from inflight import plan
from inflight.bench import loads, plot, report, shapes, target
from inflight.bench.costs import costs_of
from inflight.bench.limits import Machine, least_time, machine_of
from inflight.bench.loads import Load
from inflight.bench.measure import summarize
from inflight.bench.workload import Workload

BUSY_CLIENT = 0.8  # from here on the client may hold the server up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(shapes.SHAPES)
    parser.add_argument(
        "engine", metavar="MODEL", help=f"engine folder, checkpoint, or random weights by name: {names}"
    )
    _add_load(parser.add_argument_group("load"))
    _add_executor(parser.add_argument_group("the executor in this process"))
    _add_server(parser.add_argument_group("a running server"))
    _add_results(parser.add_argument_group("results"))


def _add_load(group: argparse._ArgumentGroup) -> None:
    lengths = "tokens: 128, uniform:100-2000, normal:500,100 or a file with one length a line (default: %(default)s)"
    group.add_argument("--cases", metavar="IN,OUT,N;...", help="such as '128,128,1024;2048,128,256', all N at once")
    group.add_argument("--input-lengths", default="64", metavar="LENGTHS", help=lengths)
    group.add_argument("--output-lengths", default="128", metavar="LENGTHS", help=lengths)
    group.add_argument("--requests", type=int, metavar="N", help="default: 4 times the concurrency, 10 s of arrivals")
    group.add_argument("--concurrency", type=int, metavar="N", help="at a time (without cases, rate or sweep: 1, 32)")
    group.add_argument("--request-rate", type=float, metavar="R", help="arrivals a second, a Poisson process")
    group.add_argument(
        "--sweep", metavar="NAME=LIST", help="concurrency=1,2,4,...,256 or rate=1,2,3,...,10: a run each"
    )
    group.add_argument("--seed", type=int, default=0, help="of lengths and arrivals (default: %(default)s)")


def _add_executor(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    group.add_argument("--tensor-parallel", type=int, metavar="N")
    group.add_argument("--threads", type=int, dest="num_threads", metavar="N", help="of the CPU engine")
    group.add_argument("--max-batch-size", type=int, metavar="N", help="sequences in flight")
    group.add_argument("--max-num-tokens", type=int, metavar="N", help="of a step")
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any field of ExecutorConfig")


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--url", help="gRPC address, e.g. 127.0.0.1:8001")
    group.add_argument(
        "--model", metavar="NAME", help="default: ensemble (text); without tokenizer tensorrt_llm (tokens)"
    )
    group.add_argument("--client-processes", type=int, metavar="N", help="default: half of the processors")


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--json", metavar="FILE", help="append one JSON line a run; - is standard output")
    group.add_argument("--plot", type=Path, metavar="FILE.svg", help="throughput against latency")
    group.add_argument("--read-bandwidth", type=float, metavar="TB/s", help="of one device, measured")
    group.add_argument("--matrix-rate", type=float, metavar="TFLOP/s", help="of one device, measured")
    group.add_argument(
        "--limits", type=Path, metavar="FILE", help="JSON lines with read_TBs and bf16_TF in their place"
    )


def run(args: argparse.Namespace) -> int:
    if args.plot:
        plot.require_matplotlib()
    asked, machine = _loads(args), machine_of(args.read_bandwidth, args.matrix_rate, args.limits)
    with shapes.engine_folder(args.engine) as engine_dir:
        document = plan.read(engine_dir)
        with _target(args, engine_dir, document) as measured:
            rows = _measure(args, measured, asked, document, machine)
    console = Console(highlight=False, stderr=args.json == "-")
    console.width = max(console.width, report.WIDTH)
    console.print(report.table(f"{Path(args.engine).name}: {measured.description}", rows))
    if args.json:
        report.write_json(rows, args.json)
    if args.plot:
        plot.draw(rows, args.plot)
    return 0


def _loads(args: argparse.Namespace) -> list[Load]:
    points = [dict(concurrency=args.concurrency, rate=args.request_rate)]
    if args.sweep:
        points = [points[0] | swept for swept in loads.parse_sweep(args.sweep)]
    if args.cases:
        return loads.vary(loads.parse_cases(args.cases), points)
    if not (args.sweep or args.concurrency or args.request_rate):
        points = [dict(concurrency=number) for number in loads.DEFAULT_CONCURRENCIES]
    return [
        Load(args.input_lengths, args.output_lengths, args.requests or loads.default_requests(**point), **point)
        for point in points
    ]


def _target(args: argparse.Namespace, engine_dir: Path, document: dict) -> AbstractContextManager[target.Target]:
    if args.url:
        return target.server(args, engine_dir, document["network"]["vocabulary_size"])
    return target.executor(args, engine_dir)


def _measure(
    args: argparse.Namespace, measured: target.Target, asked: list[Load], document: dict, machine: Machine
) -> list[report.Row]:
    """A JSON row for each load."""
    console, costs = Console(stderr=True, highlight=False), costs_of(document)
    tensor_parallel = args.tensor_parallel or 1
    common = dict(engine=measured.engine, model=Path(args.engine).name, quant=None, kv="auto", tp=tensor_parallel)
    positions = document["network"]["max_positions"]
    measured.measure(Workload(((min(128, positions // 2), min(16, positions // 2)),) * 32), lambda: None)  # warm-up
    rows = []
    for load in asked:
        workload = load.draw(args.seed)
        with report.progress(console, load.title, load.requests) as on_done:
            found, further = measured.measure(workload, on_done)
        row = common | summarize(workload, found) | dict(rate=load.rate, lengths=load.lengths) | further
        least = least_time(costs, machine.times(tensor_parallel), workload, measured.bounds)
        rows.append(row | (least.share(found.seconds) if least else {}))
        console.print(f"{load.title}: {row['out_tok_s']:,} output tok/s, {row['s']} s", soft_wrap=True)
        if row.get("client_busy", 0) > BUSY_CLIENT:
            console.print(f"a client process was busy {row['client_busy']:.0%} of the time: give more of them")
    return rows
