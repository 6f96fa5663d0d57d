"""Merges linears that read one tensor and feed one op into a single wider linear: q/k/v and gate/up."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inflight.errors import UnsupportedError
from inflight.network.graph import BLOCKS, Graph, Op, Weight, producer, readers


@dataclass(frozen=True)
class _Rule:
    parts: tuple[str, ...]  # operands of the consumer, in the merged order
    merged_name: str
    operand: str  # the operand that replaces them


_RULES = {
    "rope_kv_write": _Rule(("q", "k", "v"), "qkv", "qkv"),
    "gated_activation": _Rule(("gate", "up"), "gate_up", "x"),
}


def merge_linears(graph: Graph) -> Graph:
    """Each consumer above then reads one linear whose weight is its parts' recipes end to end.

    The engine has no unmerged form, so parts that cannot be merged raise UnsupportedError.
    """
    for block in BLOCKS:
        for op in graph.ops(block):
            if op.op in _RULES:
                graph = _merge(graph, block, op, _RULES[op.op])
    return graph.drop_unused_weights()


def _merge(graph: Graph, block: str, consumer: Op, rule: _Rule) -> Graph:
    ops = graph.ops(block)
    parts = [producer(ops, consumer.inputs[key]) for key in rule.parts]
    _check_mergeable(graph, block, consumer, rule, parts)
    taken = {name for op in ops for name in op.outputs.values()}
    merged = _merged_linear(parts, rule, taken)
    weights = dict(graph.weights)
    for key, pattern in merged.weights.items():
        part_patterns = [part.weights[key] for part in parts]
        for name, *part_names in zip(graph.expand(pattern), *map(graph.expand, part_patterns), strict=True):
            weights[name] = concatenate(name, [(part, weights[part]) for part in part_names])
    replaced = Op(
        consumer.op, {rule.operand: merged.outputs["out"]}, consumer.outputs, consumer.weights, consumer.attributes
    )
    new_ops = []
    for op in ops:
        if op is parts[0]:
            new_ops.append(merged)
        elif op is consumer:
            new_ops.append(replaced)
        elif not any(op is part for part in parts):
            new_ops.append(op)
    return replace(graph.with_ops(block, new_ops), weights=weights)


def _check_mergeable(graph: Graph, block: str, consumer: Op, rule: _Rule, parts: Sequence[Op | None]):
    for key, part in zip(rule.parts, parts, strict=True):
        name = consumer.inputs[key]
        problem = _problem(graph, block, name, part, parts)
        if problem:
            raise UnsupportedError(f"{consumer.op}: {key} ({name!r}) {problem}; wanted linears of one tensor, merged")


def _problem(graph: Graph, block: str, name: str, part: Op | None, parts: Sequence[Op | None]) -> str | None:
    if part is None or part.op != "linear":
        return f"comes from {part.op if part else 'outside the block'}"
    if part.inputs != parts[0].inputs:
        return f"reads {part.inputs['x']!r}, the first part {parts[0].inputs['x']!r}"
    if part.weights.keys() != parts[0].weights.keys():
        return f"has {sorted(part.weights)}, the first part {sorted(parts[0].weights)}"
    if len(readers(graph.ops(block), name)) > 1 or graph.is_carried(block, name):
        return "is read by other ops too"
    return "is marked as an output" if graph.is_marked(block, name) else None


def _merged_linear(parts: Sequence[Op], rule: _Rule, taken: set[str]) -> Op:
    weights = {key: _renamed_parameter(name, rule.merged_name) for key, name in parts[0].weights.items()}
    head, _, _ = parts[0].outputs["out"].rpartition(".")
    out = f"{head}.{rule.merged_name}" if head else rule.merged_name
    while out in taken:
        out += "_"
    return Op("linear", parts[0].inputs, {"out": out}, weights)


def _renamed_parameter(name: str, module: str) -> str:
    """ "layers.{layer}.attention.q.weight" -> "layers.{layer}.attention.qkv.weight"."""
    path, _, parameter = name.rpartition(".")
    parent, _, _ = path.rpartition(".")
    return ".".join(filter(None, (parent, module, parameter)))


def concatenate(name: str, parts: Sequence[tuple[str, Weight]]) -> Weight:
    """The parts' recipes end to end along axis 0."""
    first = parts[0][1]
    for part_name, part in parts:
        if part.dtype != first.dtype:
            raise UnsupportedError(
                f"weight {name!r}: {part_name!r} is {part.dtype}, {parts[0][0]!r} {first.dtype}; "
                "wanted one dtype for merged weights"
            )
    rows = sum(part.shape[0] for _, part in parts)
    sources = tuple(source for _, part in parts for source in part.sources)
    return Weight((rows, *first.shape[1:]), sources, first.shard, first.dtype)
