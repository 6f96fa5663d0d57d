"""Bytes and operations of a step at least, from the network's plan; limits.py says what is counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from inflight.bench.batcher import StepWork
from inflight.checkpoint import DTYPE_BYTES
from inflight.network.graph import at_layer

NO_WINDOW = 1 << 40
_BLOCKS = ("prologue", "layers", "epilogue")
_HEADS = ("num_heads", "num_kv_heads")


@dataclass(frozen=True)
class Costs:
    """What a network costs, from its plan. windows: keys that attention may see -> (operations a pair, KV bytes a
    token) of all layers with that window."""

    weight_bytes: int
    token_operations: int
    sampled_operations: int
    windows: Mapping[int, tuple[int, int]]


def costs_of(plan: Mapping) -> Costs:
    weights = {name: _elements(weight) for name, weight in plan["weights"].items()}
    tables = {name for op in _ops(plan, "embedding") for name in op["weights"].values()}
    linear = {block: sum(weights[name] for name in _linear_weights(plan, block)) for block in _BLOCKS}
    element = DTYPE_BYTES[plan["network"]["dtype"]]
    windows: dict[int, tuple[int, int]] = {}
    for op in _ops(plan, "attention"):
        found = op["attributes"]
        window = found["window"] or NO_WINDOW
        operations, size = windows.get(window, (0, 0))
        heads, kv_heads = (found[key] * found["head_size"] * plan["blocks"]["layers"]["repeat"] for key in _HEADS)
        windows[window] = (operations + 4 * heads, size + 2 * kv_heads * element)
    return Costs(
        sum(
            count * DTYPE_BYTES[plan["weights"][name]["dtype"]] for name, count in weights.items() if name not in tables
        ),
        2 * (linear["prologue"] + linear["layers"]),
        2 * linear["epilogue"],
        windows,
    )


def _elements(weight: Mapping) -> int:
    return int(np.prod(weight["shape"]))


def _block_ops(plan: Mapping, block: str) -> list[Mapping]:
    return plan["blocks"]["layers"]["ops"] if block == "layers" else plan["blocks"][block]


def _ops(plan: Mapping, kind: str) -> Iterator[Mapping]:
    return (op for block in _BLOCKS for op in _block_ops(plan, block) if op["op"] == kind)


def _linear_weights(plan: Mapping, block: str) -> Iterator[str]:
    layers = plan["blocks"]["layers"]
    starts = range(0, layers["repeat"] * layers["unit"], layers["unit"]) if block == "layers" else (0,)
    for op in _block_ops(plan, block):
        if op["op"] == "linear":
            yield from (at_layer(op["weights"]["weight"], start) for start in starts)


def work_of(costs: Costs, step: StepWork) -> tuple[int, int]:
    """Bytes read and operations of a step."""
    size = costs.weight_bytes
    operations = costs.token_operations * int(step.computed.sum()) + costs.sampled_operations * int(step.sampled.sum())
    for window, (pair_operations, token_bytes) in costs.windows.items():
        size += token_bytes * int(np.minimum(step.cached, window).sum())
        # Query i sees cached + i + 1 keys, until the window is full.
        rising = np.clip(window - step.cached, 0, step.computed)
        pairs = rising * step.cached + rising * (rising + 1) // 2 + (step.computed - rising) * window
        operations += pair_operations * int(pairs.sum())
    return size, operations
