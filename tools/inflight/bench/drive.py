"""Sends the requests of a workload when they are due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from inflight.bench.measure import Timeline
from inflight.bench.workload import Workload

# ask(index of the request, when it is due) -> its timeline
Ask = Callable[[int, float], Awaitable[Timeline]]


async def drive(workload: Workload, ask: Ask, on_done: Callable[[], None] = lambda: None) -> list[Timeline]:
    """Timelines of all requests, in their order. Raises what `ask` raises.

    A request that arrives by the clock counts its latency from its arrival, however late it could be sent.
    """
    begin = time.perf_counter()
    gate = asyncio.Semaphore(workload.concurrency or len(workload.lengths))

    async def one(index: int) -> Timeline:
        due = None if workload.arrivals is None else begin + workload.arrivals[index]
        if due is not None:
            await asyncio.sleep(due - time.perf_counter())
        async with gate:
            timeline = await ask(index, due or time.perf_counter())
        on_done()
        return timeline

    tasks = [asyncio.ensure_future(one(index)) for index in range(len(workload.lengths))]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
