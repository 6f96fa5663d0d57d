"""What a benchmark measures: when each request was sent and when its tokens arrived."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Workload:
    """`requests` prompts of `input_length` random tokens, `output_length` tokens each, `concurrency` at a time."""

    vocabulary: int
    input_length: int
    output_length: int
    requests: int
    concurrency: int
    seed: int = 0

    def prompts(self) -> list[list[int]]:
        generator = random.Random(self.seed)
        return [
            [generator.randrange(2, self.vocabulary) for _ in range(self.input_length)] for _ in range(self.requests)
        ]


@dataclass
class Timeline:
    """One request, in seconds of one clock. `arrivals`: (time, tokens) of each piece of the answer."""

    sent: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def first_token_s(self) -> float:
        return self.arrivals[0][0] - self.sent

    @property
    def time_per_output_token_s(self) -> float | None:
        """Mean over the tokens behind the first piece; None when there are none."""
        behind = self.tokens - self.arrivals[0][1]
        return (self.arrivals[-1][0] - self.arrivals[0][0]) / behind if behind else None


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summarize(workload: Workload, timelines: list[Timeline], seconds: float) -> dict[str, float]:
    """Output tokens per second of the whole run, time to first token and time per output token in milliseconds."""
    first = [timeline.first_token_s for timeline in timelines]
    per_token = [value for timeline in timelines if (value := timeline.time_per_output_token_s) is not None]
    tokens = sum(timeline.tokens for timeline in timelines)
    summary = {
        "isl": workload.input_length,
        "osl": workload.output_length,
        "n": workload.requests,
        "concurrency": workload.concurrency,
        "s": round(seconds, 3),
        "out_tok_s": round(tokens / seconds, 1),
    }
    for name, values in (("ttft_ms", first), ("tpot_ms", per_token)):
        if values:
            summary[f"{name}_mean"] = round(1e3 * sum(values) / len(values), 3)
            summary[f"{name}_p50"] = round(1e3 * percentile(values, 0.5), 3)
            summary[f"{name}_p99"] = round(1e3 * percentile(values, 0.99), 3)
    return summary
