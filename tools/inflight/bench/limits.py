"""The least time that a machine's read bandwidth and matrix rate allow a workload, and which of the two binds.

Each step of the batch needs at least

    max(bytes read / read bandwidth, floating-point operations / matrix rate)

and the least time of a run is the sum over its steps. The steps are those of an ideal continuous batcher with the same
bounds as the engine's: one token for every sequence that generates, the rest of the step's tokens for prompts in the
order of their arrival. Counted are

- bytes: every weight once a step, except the embedding table, of which a step reads a few rows (a head tied to it does
  read it); and the keys and values that lie in the cache already, once for every sequence of the step;
- operations: 2 a weight of the linear layers and token, those behind the last layer (the head) only for tokens that are
  sampled from; attention 4 x heads x head size a pair of a query and a key that it may see.

Activations, writes, norms, sampling and communication count nothing, so that the limit can be approached, never passed:
a share of 80 % means that the run took 1.25 times the least time.

python -m inflight.bench.limits LIMITS.jsonl MAX_BATCH_SIZE MAX_NUM_TOKENS [KV_TOKENS] adds the share to JSON rows of
named models that another engine's bench wrote: from standard input to standard output, other lines unchanged.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from inflight import plan
from inflight.bench import shapes
from inflight.bench.batcher import Bounds, steps_of
from inflight.bench.costs import Costs, costs_of, work_of
from inflight.bench.workload import Workload
from inflight.errors import InflightError


@dataclass(frozen=True)
class Machine:
    """Bytes read and floating-point operations a second; one of both may be unknown (None)."""

    read_bandwidth: float | None = None
    matrix_rate: float | None = None

    @property
    def is_known(self) -> bool:
        return self.read_bandwidth is not None or self.matrix_rate is not None

    def times(self, count: int) -> Machine:
        """`count` of these machines side by side."""
        return Machine(*(value and value * count for value in (self.read_bandwidth, self.matrix_rate)))


def read_machine(path: Path) -> Machine:
    """From JSON lines with read_TBs (TB/s) and bf16_TF (TFLOP/s), the highest of each; other lines are skipped."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    except ValueError as error:
        raise InflightError(f"{path}: cannot be read as JSON lines: {error}") from error
    read, matrix = ([row[key] for row in rows if key in row] for key in ("read_TBs", "bf16_TF"))
    if not read and not matrix:
        raise InflightError(f"{path}: no line has read_TBs or bf16_TF")
    return Machine(max(read) * 1e12 if read else None, max(matrix) * 1e12 if matrix else None)


def machine_of(read_bandwidth: float | None, matrix_rate: float | None, path: Path | None) -> Machine:
    """In TB/s and TFLOP/s; what is not given comes from the file, if there is one."""
    read = None if read_bandwidth is None else read_bandwidth * 1e12
    matrix = None if matrix_rate is None else matrix_rate * 1e12
    found = Machine() if path is None else read_machine(path)
    return Machine(read or found.read_bandwidth, matrix or found.matrix_rate)


@dataclass(frozen=True)
class LeastTime:
    """binds: "read" or "matrix", the limit that sets the larger part of the seconds."""

    seconds: float
    binds: str

    def share(self, seconds: float) -> dict[str, float | str]:
        return {"share_of_limit": round(self.seconds / seconds, 4), "limit": self.binds}


def least_time(costs: Costs, machine: Machine, workload: Workload, bounds: Bounds) -> LeastTime | None:
    """None when the machine's limits are not known, or when the arrivals set the pace and not the machine."""
    if not machine.is_known or workload.arrivals is not None:
        return None
    by_limit: Counter[str] = Counter()
    for step in steps_of(workload, bounds):
        size, operations = work_of(costs, step)
        needs = {
            "read": size / machine.read_bandwidth if machine.read_bandwidth else 0.0,
            "matrix": operations / machine.matrix_rate if machine.matrix_rate else 0.0,
        }
        binding = max(needs, key=needs.get)
        by_limit[binding] += needs[binding]
    return LeastTime(sum(by_limit.values()), max(by_limit, key=by_limit.get))


def add_share(row: dict, machine: Machine, bounds: Bounds) -> dict:
    """The row with its share, if it is one of a named model's run that sends all requests at once and has none yet."""
    if row.get("model") not in shapes.SHAPES or "isl" not in row or "share_of_limit" in row:
        return row
    with shapes.engine_folder(row["model"]) as engine_dir:
        costs = costs_of(plan.read(engine_dir))
    workload = Workload(((row["isl"], row["osl"]),) * row["n"])
    least = least_time(costs, machine.times(row.get("tp") or 1), workload, bounds)
    return row | (least.share(row["s"]) if least else {})


def main(limits: str, *bounds: str) -> None:
    machine, batch = read_machine(Path(limits)), Bounds(*map(int, bounds))
    for line in sys.stdin:
        shared = json.dumps(add_share(json.loads(line), machine, batch)) + "\n" if line.startswith("{") else line
        sys.stdout.write(shared)


if __name__ == "__main__":
    main(*sys.argv[1:])
