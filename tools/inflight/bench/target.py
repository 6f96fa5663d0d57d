"""What is measured: the executor in this process, or a running server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inflight.bench import shapes
from inflight.bench.batcher import Bounds
from inflight.bench.measure import Measurement
from inflight.bench.workload import Workload
from inflight.errors import InflightError

OnDone = Callable[[], None]
_SETTINGS = ("device", "tensor_parallel", "num_threads", "max_batch_size", "max_num_tokens")


@dataclass(frozen=True)
class Target:
    """measure: runs a workload; gives what it measured and further fields of the JSON line."""

    engine: str
    description: str
    bounds: Bounds
    measure: Callable[[Workload, OnDone], tuple[Measurement, dict[str, float]]]


@contextmanager
def executor(args: argparse.Namespace, engine_dir: Path) -> Iterator[Target]:
    from inflight.bench import offline
    from inflight.executor import Executor

    settings = _executor_settings(args)
    with Executor(engine_dir, **settings) as running:
        stats = running.stats()
        bounds = _bounds(settings, stats["kv_blocks_max"] * stats["kv_tokens_per_block"])
        print(running.model.load_report, end="", file=sys.stderr)
        place = f"the executor in this process, {running.model.device}"
        yield Target("inflight", place, bounds, lambda load, on_done: (offline.run(running, load, on_done), {}))


@contextmanager
def server(args: argparse.Namespace, engine_dir: Path, vocabulary: int) -> Iterator[Target]:
    from inflight.bench import client
    from inflight.bench.server import Clients, default_processes

    tokenizer = None if shapes.is_name(args.engine) else Path(args.engine)
    model = args.model or (client.ENGINE_MODEL if tokenizer is None else "ensemble")
    asked = client.Target(args.url, model, vocabulary, tokenizer)
    with Clients(asked, args.client_processes or default_processes()) as clients:

        def measure(load: Workload, on_done: OnDone) -> tuple[Measurement, dict[str, float]]:
            measured, busy = clients.run(load)
            return measured, {"client_busy": round(busy, 4)}

        description = f"{model} at {args.url}, gRPC streaming"
        yield Target("inflight-triton", description, _bounds(_executor_settings(args)), measure)


def _executor_settings(args: argparse.Namespace) -> dict[str, object]:
    """Fields of ExecutorConfig. Requests never share a beginning: keeping blocks for reuse would only cost."""
    settings: dict[str, object] = {"kv_cache_enable_block_reuse": False}
    if shapes.is_name(args.engine) and not args.url:
        _require_random_weights(args.engine)
        settings["random_weights"] = True
    given = {name: getattr(args, name) for name in _SETTINGS}
    settings |= {name: value for name, value in given.items() if value is not None}
    return settings | dict(_setting(text) for text in args.set)


def _require_random_weights(name: str) -> None:
    from inflight import _executor

    if not hasattr(_executor.ExecutorConfig(), "random_weights"):
        raise InflightError(f"{name} has no weights, and this build's executor cannot draw random ones: build it anew")


def _setting(text: str) -> tuple[str, object]:
    """Values are JSON; what is not is a string."""
    name, separator, value = text.partition("=")
    if not separator:
        raise InflightError(f"--set {text}: wanted NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _bounds(settings: dict[str, object], kv_tokens: int | None = None) -> Bounds:
    from inflight import _executor

    defaults = _executor.ExecutorConfig()
    sizes = (settings.get(name) or getattr(defaults, name) for name in ("max_batch_size", "max_num_tokens"))
    return Bounds(*sizes, kv_tokens)
