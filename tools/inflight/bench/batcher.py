"""An ideal continuous batcher: which tokens of a workload share a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from inflight.bench.workload import Workload


@dataclass(frozen=True)
class Bounds:
    """Of one step: sequences and tokens; kv_tokens: those that the KV cache holds (None: enough)."""

    max_batch_size: int
    max_num_tokens: int
    kv_tokens: int | None = None


@dataclass(frozen=True)
class StepWork:
    """By sequence: tokens in the cache before the step, tokens computed in it, whether it is sampled from."""

    cached: np.ndarray
    computed: np.ndarray
    sampled: np.ndarray


def steps_of(workload: Workload, bounds: Bounds) -> Iterator[StepWork]:
    """The steps of an ideal continuous batcher; arrivals are taken as at once."""
    at_a_time = min(bounds.max_batch_size, workload.concurrency or bounds.max_batch_size)
    inputs, outputs = np.array(workload.lengths).T
    totals = inputs + outputs - 1  # the last token is sampled, not computed
    room = totals.sum() if bounds.kv_tokens is None else max(bounds.kv_tokens, totals.max())
    done = np.zeros_like(totals)
    running = np.zeros(0, dtype=int)  # indices, in the order of admission
    admitted = 0
    while admitted < len(totals) or len(running):
        held = totals[running].sum()
        while admitted < len(totals) and len(running) < at_a_time and held + totals[admitted] <= room:
            running = np.append(running, admitted)
            held += totals[admitted]
            admitted += 1
        cached = done[running]
        generates = cached >= inputs[running]
        chunks = np.where(generates, 0, inputs[running] - cached)
        budget = bounds.max_num_tokens - generates.sum()
        computed = np.clip(budget - (np.cumsum(chunks) - chunks), 0, chunks) + generates
        done[running] += computed
        sampled = done[running] >= inputs[running]
        yield StepWork(cached[computed > 0], computed[computed > 0], sampled[computed > 0])
        running = running[done[running] < totals[running]]
