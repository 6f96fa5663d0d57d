"""The executor in this process under load."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from inflight.bench.measure import Timeline, Workload
from inflight.executor import Executor, Request


def run(executor: Executor, workload: Workload) -> tuple[list[Timeline], float]:
    """Timelines of all requests, and the seconds from the first submission to the last token."""

    def ask(prompt: list[int]) -> Timeline:
        timeline = Timeline(time.perf_counter())
        for result in executor.submit(Request(prompt, max_tokens=workload.output_length, streaming=True)):
            timeline.arrivals.append((time.perf_counter(), len(result.tokens)))
        return timeline

    start = time.perf_counter()
    with ThreadPoolExecutor(workload.concurrency) as clients:
        timelines = list(clients.map(ask, workload.prompts()))
    return timelines, time.perf_counter() - start
