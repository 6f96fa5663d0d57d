"""A running server under load, from several client processes at once: one alone cannot read what a GPU generates."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Barrier, BrokenBarrierError

from inflight.bench import client
from inflight.bench.measure import Measurement
from inflight.bench.workload import Workload
from inflight.errors import InflightError

START_PATIENCE_S = 120.0
_NOTHING = Workload(())

_barrier: Barrier | None = None  # of all client processes; set in each as it starts


def default_processes() -> int:
    """Half of the processors: the server wants the others."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // 2))


class Clients:
    """Client processes that live as long as the context: they start once, not once a run."""

    def __init__(self, target: client.Target, processes: int):
        context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        self._target, self._processes = target, processes
        barrier = context.Barrier(processes)
        self._pool = ProcessPoolExecutor(processes, context, _set_barrier, (barrier,))

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def run(self, workload: Workload) -> tuple[Measurement, float]:
        """Also gives the largest share of time that one process's processor was busy. Raises InflightError."""
        active = min(self._processes, workload.concurrency or len(workload.lengths), len(workload.lengths))
        idle = [_NOTHING] * (self._processes - active)
        parts = [workload.part(index, active) for index in range(active)] + idle
        waiting = [self._pool.submit(_run_part, self._target, part) for part in parts]
        try:
            done = [future.result() for future in waiting]
        except (BrokenProcessPool, BrokenBarrierError) as error:
            reasons = (future.exception() for future in waiting if future.done())
            reason = next((it for it in reasons if isinstance(it, InflightError)), None)
            raise reason or InflightError(f"a client process ended: {error!r}") from error
        timelines = [timeline for part in done for timeline in part.timelines]
        sent, last = min(it.sent for it in timelines), max(it.last for it in timelines)
        return Measurement(timelines, last - sent), max(part.busy for part in done)


def _set_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _run_part(target: client.Target, workload: Workload) -> client.Part:
    try:
        return client.run(target, workload, lambda: _barrier.wait(START_PATIENCE_S))
    except InflightError:
        _barrier.abort()
        raise
