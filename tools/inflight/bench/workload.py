"""The requests of one run: their lengths, when they arrive and how many are under way at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inflight.errors import InflightError


@dataclass(frozen=True)
class Workload:
    """One request for each (input, output) pair of `lengths`, in tokens.

    concurrency: requests at a time; None: no bound. arrivals: seconds from the start, not before which each request is
    sent; None: at once.
    """

    lengths: tuple[tuple[int, int], ...]
    concurrency: int | None = None
    arrivals: tuple[float, ...] | None = None

    def part(self, index: int, parts: int) -> Workload:
        """One of `parts` workloads that run side by side in place of this one."""
        concurrency = None if self.concurrency is None else len(range(index, self.concurrency, parts))
        arrivals = None if self.arrivals is None else self.arrivals[index::parts]
        return Workload(self.lengths[index::parts], concurrency, arrivals)

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Random tokens, others at each call: no cache of prefixes, here or in a server, has seen them."""
        generator = np.random.default_rng()
        lowest = min(10, vocabulary - 1)  # below lie the special tokens of most vocabularies
        return [generator.integers(lowest, vocabulary, length).tolist() for length, _ in self.lengths]


def draw_lengths(text: str, count: int, generator: np.random.Generator) -> list[int]:
    """`count` lengths of at least 1 token from "128", "uniform:100-2000" (both ends included), "normal:500,100" (mean,
    standard deviation), or a file with one length a line, taken in order and from the top again at its end."""
    kind, _, numbers = text.partition(":")
    try:
        if kind in _DISTRIBUTIONS:
            lengths = _DISTRIBUTIONS[kind](numbers, count, generator)
        else:
            given = (
                [int(line) for line in Path(text).read_text("utf-8").split()] if Path(text).is_file() else [int(text)]
            )
            lengths = [given[i % len(given)] for i in range(count)]
    except (ValueError, ZeroDivisionError):
        raise InflightError(f"lengths {text!r}: wanted 128, uniform:100-2000, normal:500,100 or a file") from None
    if lengths and min(lengths) < 1:
        raise InflightError(f"lengths {text!r}: found {min(lengths)}, wanted at least 1 token")
    return lengths


def _uniform(numbers: str, count: int, generator: np.random.Generator) -> list[int]:
    low, high = map(int, numbers.split("-"))
    return generator.integers(low, high + 1, count).tolist()


def _normal(numbers: str, count: int, generator: np.random.Generator) -> list[int]:
    mean, deviation = map(float, numbers.split(","))
    return np.maximum(1, generator.normal(mean, deviation, count).round()).astype(int).tolist()


_DISTRIBUTIONS: dict[str, Callable[[str, int, np.random.Generator], list[int]]] = {
    "uniform": _uniform,
    "normal": _normal,
}
