"""The server's memory while it is under load, and whether it holds anything back at the end."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inflight.soak.wire import Wire

PERIOD_S = 0.5
BUSY = ('request_type="active"', 'kv_cache_block_type="used"')


def resident_bytes(pid: int) -> int:
    """Of the process and those that it started. 0 when it has gone."""
    total, waiting = 0, [pid]
    page = os.sysconf("SC_PAGE_SIZE")
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            total += page * int((process / "statm").read_text().split()[1])
            for children in (process / "task").glob("*/children"):
                waiting += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


@dataclass
class Memory:
    """Samples of the resident bytes over time."""

    pid: int
    samples: list[tuple[float, int]] = field(default_factory=list)

    async def watch(self) -> None:
        while True:
            self.samples.append((time.monotonic(), resident_bytes(self.pid)))
            await asyncio.sleep(PERIOD_S)

    @property
    def steady(self) -> np.ndarray:
        """[samples, 2] seconds and bytes of the second half: caches and pools have filled by then."""
        return np.array(self.samples[len(self.samples) // 2 :], float)

    @property
    def slope(self) -> float:
        """Bytes a second, by least squares over the second half."""
        steady = self.steady
        return float(np.polyfit(steady[:, 0] - steady[0, 0], steady[:, 1], 1)[0]) if len(steady) > 2 else 0.0

    @property
    def growth(self) -> float:
        """Bytes that the slope makes of the second half's time."""
        return self.slope * (self.steady[-1, 0] - self.steady[0, 0]) if len(self.steady) > 2 else 0.0


async def held_back(wire: Wire, patience_s: float) -> dict[str, float]:
    """Active sequences and used KV blocks that are still there after a while: none, if all is well."""
    end = time.monotonic() + patience_s
    while True:
        samples = await wire.metrics()
        busy = {name: value for name, value in samples.items() if value and any(it in name for it in BUSY)}
        if not busy or time.monotonic() > end:
            return busy
        await asyncio.sleep(0.1)
