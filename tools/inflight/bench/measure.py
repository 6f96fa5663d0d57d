"""What a run measures: when each request was sent and when its tokens came."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inflight.bench.workload import Workload


@dataclass(frozen=True)
class Timeline:
    """One request, in seconds of the steady clock. first_tokens: how many tokens its first piece held."""

    sent: float
    first: float
    last: float
    tokens: int
    first_tokens: int = 1

    @property
    def first_token_s(self) -> float:
        return self.first - self.sent

    @property
    def time_per_output_token_s(self) -> float | None:
        """Mean over the tokens behind the first piece; None when there are none."""
        behind = self.tokens - self.first_tokens
        return (self.last - self.first) / behind if behind else None


@dataclass(frozen=True)
class Measurement:
    """seconds: from the first request sent to the last answer complete. steps: of the executor, where it is known."""

    timelines: list[Timeline]
    seconds: float
    steps: int | None = None


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summarize(workload: Workload, measured: Measurement) -> dict[str, float | None]:
    """Fields of a JSON line: throughput in tokens a second of the whole run, latencies in milliseconds.

    isl, osl: mean lengths. ms_per_tok: the run's time over the output length, the time per token of a lone request.
    """
    requests = len(workload.lengths)
    inputs, outputs = (sum(lengths) for lengths in zip(*workload.lengths, strict=True))
    got, seconds = sum(timeline.tokens for timeline in measured.timelines), measured.seconds
    per_token = (timeline.time_per_output_token_s for timeline in measured.timelines)
    row = {
        "isl": round(inputs / requests),
        "osl": round(outputs / requests),
        "n": requests,
        "concurrency": workload.concurrency,
        "s": round(seconds, 3),
        "out_tok_s": round(got / seconds, 1),
        "total_tok_s": round((got + inputs) / seconds, 1),
        "ms_per_tok": round(1e3 * seconds / (outputs / requests), 3),
        **_milliseconds("ttft_ms", (timeline.first_token_s for timeline in measured.timelines)),
        **_milliseconds("tpot_ms", (value for value in per_token if value is not None)),
    }
    if measured.steps:
        row |= {"steps": measured.steps, "step_ms": round(1e3 * seconds / measured.steps, 3)}
    return row


def _milliseconds(name: str, seconds: Iterable[float]) -> dict[str, float]:
    values = [1e3 * value for value in seconds]
    if not values:
        return {}
    found = {"mean": sum(values) / len(values), "p50": percentile(values, 0.5), "p99": percentile(values, 0.99)}
    return {f"{name}_{kind}": round(value, 3) for kind, value in found.items()}
