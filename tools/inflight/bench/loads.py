"""The loads that a command line asks for: cases, a single load or a sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from inflight.bench.workload import Workload, draw_lengths
from inflight.errors import InflightError

SECONDS_OF_ARRIVALS = 10  # requests of a run at a given rate, unless their number is given
DEFAULT_CONCURRENCIES = (1, 32)


@dataclass(frozen=True)
class Load:
    """A workload to draw. Lengths: see draw_lengths. rate: arrivals a second, a Poisson process."""

    input_lengths: str
    output_lengths: str
    requests: int
    concurrency: int | None = None
    rate: float | None = None

    def draw(self, seed: int) -> Workload:
        generator = np.random.default_rng(seed)
        inputs = draw_lengths(self.input_lengths, self.requests, generator)
        outputs = draw_lengths(self.output_lengths, self.requests, generator)
        arrivals = None
        if self.rate is not None:
            arrivals = tuple(np.cumsum(generator.exponential(1 / self.rate, self.requests)).tolist())
        return Workload(tuple(zip(inputs, outputs, strict=True)), self.concurrency, arrivals)

    @property
    def lengths(self) -> str:
        return f"{self.input_lengths}/{self.output_lengths}"

    @property
    def title(self) -> str:
        at_a_time = "" if self.concurrency is None else f", {self.concurrency} at a time"
        rate = "" if self.rate is None else f", {self.rate:g} a second"
        return f"{self.lengths} x {self.requests}{at_a_time}{rate}"


def parse_cases(text: str) -> list[Load]:
    """ "128,128,1024;2048,128,256": input length, output length and number of requests, all at once."""
    try:
        cases = [[int(number) for number in case.split(",")] for case in text.split(";") if case.strip()]
        return [Load(str(inputs), str(outputs), requests) for inputs, outputs, requests in cases]
    except ValueError:
        raise InflightError(f"cases {text!r}: wanted IN,OUT,REQUESTS;..., such as 128,128,1024;2048,128,256") from None


def parse_sweep(text: str) -> list[dict[str, float]]:
    """ "concurrency=1,2,4,...,256" or "rate=0.5,1,2": that field of Load, at each of the values."""
    name, _, values = text.partition("=")
    if name not in _SWEPT:
        raise InflightError(
            f"sweep {text!r}: wanted one of {', '.join(_SWEPT)} and values, as in concurrency=1,2,4,...,256"
        )
    return [{name: _SWEPT[name](value)} for value in expand(values)]


_SWEPT = {"concurrency": int, "rate": float}


def vary(loads: list[Load], points: list[dict[str, float]]) -> list[Load]:
    """Each load at each point."""
    return [replace(load, **point) for load in loads for point in points]


def default_requests(concurrency: int | None = None, rate: float | None = None) -> int:
    if rate is not None:
        return max(32, round(SECONDS_OF_ARRIVALS * rate))
    return max(8, 4 * (concurrency or 32))


def expand(text: str) -> list[float]:
    """The numbers of "1,2,4,...,256". The dots go on from the numbers before them: in equal steps when three or more
    are equally far apart, else by the last factor."""
    words = text.split(",")
    try:
        before = [float(word) for word in words[: words.index("...")]] if "..." in words else []
        if not before:
            return [float(word) for word in words]
        (last,) = map(float, words[words.index("...") + 1 :])
        step, factor = before[-1] - before[-2], before[-1] / before[-2]
        linear = len(before) > 2 and before[-2] - before[-3] == step
        if step <= 0 or last < before[-1]:
            raise ValueError
    except (ValueError, IndexError, ZeroDivisionError):
        raise InflightError(f"list {text!r}: wanted rising numbers, such as 1,32 or 1,2,4,...,256") from None
    while (following := before[-1] + step if linear else before[-1] * factor) < last:
        before.append(following)
    return before + ([last] if before[-1] < last else [])
