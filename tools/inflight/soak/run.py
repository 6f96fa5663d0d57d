"""A soak: clients at a server until the time is over, then the reckoning."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from inflight.soak.cases import Case
from inflight.soak.clients import SHARES, Client, Outcome, reference
from inflight.soak.watch import Memory, held_back
from inflight.soak.wire import Addresses, Wire

FAILURES_SHOWN = 5


@dataclass(frozen=True)
class Settings:
    model: str
    streams: int
    seconds: float
    seed: int = 0
    patience_s: float = 120.0
    shares: dict[str, float] = field(default_factory=lambda: SHARES)
    least: int = 1  # requests of each client, however long they take


@dataclass
class Tally:
    """What has come of the requests so far."""

    counts: Counter = field(default_factory=Counter)  # by kind and verdict
    pieces: int = 0
    failures: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    memory: Memory | None = None
    held_back: dict[str, float] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.kind, outcome.verdict] += 1
        self.pieces += outcome.pieces
        if outcome.verdict not in ("right", "refused") and len(self.failures) < FAILURES_SHOWN:
            self.failures.append(outcome)

    def of(self, verdict: str) -> int:
        return sum(count for (_, it), count in self.counts.items() if it == verdict)

    @property
    def total(self) -> int:
        return self.counts.total()

    def failed(self, most_growth: float) -> list[str]:
        """What is not as it should be; `most_growth`: bytes of memory in the second half."""
        found = [f"{self.of(it)} {it}" for it in ("lost", "duplicated", "wrong") if self.of(it)]
        found += [f"{name} is still {value:.0f}" for name, value in self.held_back.items()]
        if self.memory is not None and self.memory.growth > most_growth:
            found.append(f"memory grew by {self.memory.growth / 2**20:.1f} MiB in the second half")
        return found


async def soak(
    settings: Settings,
    addresses: Addresses,
    cases: list[Case],
    pid: int | None = None,
    on_progress: Callable[[Tally, float], None] = lambda tally, seconds: None,
    period_s: float = 10.0,
) -> Tally:
    """`pid`: of the server, where its memory can be seen. `on_progress` is called every `period_s`."""
    tally = Tally(memory=None if pid is None else Memory(pid))
    async with Wire(addresses) as wire:
        known = await reference(wire, settings.model, cases)
        watching = [asyncio.create_task(tally.memory.watch())] if tally.memory else []
        began = time.monotonic()
        watching.append(asyncio.create_task(_tell(tally, began, on_progress, period_s)))
        clients = [
            Client(
                wire,
                settings.model,
                known,
                random.Random(f"{settings.seed} {index}"),
                settings.patience_s,
                settings.shares,
            )
            for index in range(settings.streams)
        ]
        end = began + settings.seconds
        await asyncio.gather(*(_ask_on(client, tally, end, settings.least) for client in clients))
        tally.seconds = time.monotonic() - began
        for task in watching:
            task.cancel()
        tally.held_back = await held_back(wire, settings.patience_s / 4)
    return tally


async def _ask_on(client: Client, tally: Tally, end: float, least: int) -> None:
    count = 0
    while count < least or time.monotonic() < end:
        tally.add(await client.ask())
        count += 1


async def _tell(tally: Tally, began: float, on_progress: Callable[[Tally, float], None], period_s: float) -> None:
    while True:
        await asyncio.sleep(period_s)
        on_progress(tally, time.monotonic() - began)
