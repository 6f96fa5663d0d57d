"""The executor in this process under load.

Requests are not streamed: no Python runs between two tokens, so that at tens of thousands of tokens a second the
measurement does not slow what it measures. The times of the first and last token are those of the engine's own clock,
which is Python's perf_counter (the steady clock of the system).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from inflight.bench.drive import drive
from inflight.bench.measure import Measurement, Timeline
from inflight.bench.workload import Workload
from inflight.executor import Executor, Request


def run(executor: Executor, workload: Workload, on_done: Callable[[], None] = lambda: None) -> Measurement:
    """Greedy answers of the full output length: no token ends a request."""
    prompts = workload.prompts(executor.model.vocabulary_size)
    requests = [
        Request(prompt, max_tokens=output, perf_metrics=True)
        for prompt, (_, output) in zip(prompts, workload.lengths, strict=True)
    ]

    async def ask(index: int, sent: float) -> Timeline:
        (result,) = [result async for result in executor.submit(requests[index])]
        first, last = result.perf.first_token_time_ns, result.perf.last_token_time_ns
        return Timeline(sent, 1e-9 * first, 1e-9 * last, len(result.tokens))

    steps, start = executor.stats()["steps"], time.perf_counter()
    timelines = asyncio.run(drive(workload, ask, on_done))
    seconds = time.perf_counter() - start
    return Measurement(timelines, seconds, executor.stats()["steps"] - steps)
