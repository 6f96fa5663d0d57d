"""Passes: functions Graph -> Graph, run in this order before a plan is written."""

from collections.abc import Callable

from inflight.network.graph import Graph
from inflight.passes.add_norm import fuse_add_norm, rotate_norms
from inflight.passes.merge import merge_linears
from inflight.passes.shard import shard

PASSES: tuple[Callable[[Graph], Graph], ...] = (merge_linears, rotate_norms, fuse_add_norm, shard)


def run_passes(graph: Graph) -> Graph:
    for transform in PASSES:
        graph = transform(graph)
    return graph


__all__ = ["PASSES", "fuse_add_norm", "merge_linears", "rotate_norms", "run_passes", "shard"]
