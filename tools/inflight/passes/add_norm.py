"""Fuses residual additions with the norms that read the sum, across the layer boundary too.

A pre-norm network adds at the end of a layer what the next layer's first norm reads. rotate_norms moves that norm into
the layer that makes the sum, so that fuse_add_norm finds both in one block.
"""

from collections.abc import Sequence
from dataclasses import replace

from inflight.network.graph import EXTERNAL_TENSORS, Graph, Op, at_layer, producer, readers, rename_inputs, tensor_names

NORMS = ("rms_norm", "layer_norm")


def rotate_norms(graph: Graph) -> Graph:
    """Carries (sum, its norm) instead of the sum alone.

    The first layer's norm goes to the prologue; each unit ends with the norm of the unit behind it, the last one with
    the final norm. These weights become one family of names, "input_norm.{layer+1}.weight", where index 0 is
    the prologue's and index num_layers the final norm's.
    """
    for entry, leave in graph.carry:
        norms = _boundary_norms(graph, entry, leave)
        if norms:
            return _rotate(graph, entry, leave, *norms)
    return graph


def _boundary_norms(graph: Graph, entry: str, leave: str) -> tuple[Op, Op] | None:
    """The first norm of a unit and the final norm, if both can move."""
    made_by = producer(graph.layers, leave)
    first = _only_norm(graph, "layers", entry)
    final = _only_norm(graph, "epilogue", entry)
    if not (made_by and made_by.op == "add" and first and final) or graph.is_marked("layers", leave):
        return None
    same = (first.op, first.attributes, set(first.weights)) == (final.op, final.attributes, set(final.weights))
    return (first, final) if same and _owns_weights(graph, first, final) else None


def _only_norm(graph: Graph, block: str, tensor: str) -> Op | None:
    norms = [op for op in readers(graph.ops(block), tensor) if op.op in NORMS and op.inputs.get("x") == tensor]
    movable = len(norms) == 1 and "residual" not in norms[0].inputs
    out = norms[0].outputs["out"] if movable else ""
    return norms[0] if movable and not graph.is_marked(block, out) and not graph.is_carried(block, out) else None


def _owns_weights(graph: Graph, first: Op, final: Op) -> bool:
    """Whether the weights are the norms' alone, one a layer, and free to take their new names."""
    patterns = [*first.weights.values(), *final.weights.values()]
    alone = all(sum(name in op.weights.values() for op in graph.all_ops()) == 1 for name in patterns)
    per_layer = all("{layer}" in name for name in first.weights.values())
    new_names = {at_layer(_flat_name(name), i) for name in first.weights.values() for i in range(graph.num_layers + 1)}
    return alone and per_layer and not new_names & graph.weights.keys()


def _rotate(graph: Graph, entry: str, leave: str, first: Op, final: Op) -> Graph:
    unit = f"{{layer+{graph.unit}}}"
    patterns = {key: _flat_name(name) for key, name in first.weights.items()}
    entry_normed, leave_normed = _new_names(graph, first.outputs["out"], final.outputs["out"])
    at_start = replace(
        first, outputs={"out": entry_normed}, weights={key: at_layer(name, 0) for key, name in patterns.items()}
    )
    at_end = replace(
        first,
        inputs={"x": leave},
        outputs={"out": leave_normed},
        weights={key: name.replace("{layer}", unit) for key, name in patterns.items()},
    )
    return replace(
        graph,
        prologue=(*graph.prologue, at_start),
        layers=(*_without(graph.layers, first, entry_normed), at_end),
        epilogue=_without(graph.epilogue, final, entry_normed),
        carry=(*graph.carry, (entry_normed, leave_normed)),
        weights=_rename_weights(graph, first, final, patterns),
    )


def _flat_name(pattern: str) -> str:
    """ "layers.{layer}.input_norm.weight" -> "input_norm.{layer}.weight"."""
    module, _, parameter = pattern.partition("{layer}.")[2].rpartition(".")
    return ".".join(filter(None, (module, "{layer}", parameter)))


def _new_names(graph: Graph, first_out: str, final_out: str) -> tuple[str, str]:
    """Names of the carried norm at entry and exit that nothing else has; the norms' own names become free."""
    taken = tensor_names(graph.prologue) | tensor_names(graph.layers) - {first_out}
    taken |= tensor_names(graph.epilogue) - {final_out}
    entry = first_out
    while {entry, f"{entry}.next"} & taken:
        entry += "_"
    return entry, f"{entry}.next"


def _without(ops: Sequence[Op], norm: Op, normed: str) -> tuple[Op, ...]:
    return tuple(rename_inputs(op, {norm.outputs["out"]: normed}) for op in ops if op is not norm)


def _rename_weights(graph: Graph, first: Op, final: Op, patterns: dict[str, str]) -> dict:
    names: dict[str, str] = {}
    for key, pattern in patterns.items():
        for layer in range(0, graph.num_layers, graph.unit):
            names[at_layer(first.weights[key], layer)] = at_layer(pattern, layer)
        names[final.weights[key]] = at_layer(pattern, graph.num_layers)
    return {names.get(name, name): weight for name, weight in graph.weights.items()}


def fuse_add_norm(graph: Graph) -> Graph:
    """add + norm of the sum -> norm with `residual` in and out (the sum stays in the residual)."""
    for block in ("prologue", "layers", "epilogue"):
        position = 0
        while position < len(graph.ops(block)):
            graph = _fuse_at(graph, block, position)
            position += 1
    return graph


def _fuse_at(graph: Graph, block: str, position: int) -> Graph:
    ops = graph.ops(block)
    add = ops[position]
    if add.op != "add":
        return graph
    total = add.outputs["out"]
    norm = next((op for op in readers(ops, total) if op.op in NORMS and op.inputs["x"] == total), None)
    residual = next((key for key in ("a", "b") if _dies_here(graph, block, position, add.inputs[key])), None)
    if norm is None or residual is None or "residual" in norm.inputs or graph.is_marked(block, total):
        return graph
    x = add.inputs["b" if residual == "a" else "a"]
    fused = replace(
        norm, inputs={"x": x, "residual": add.inputs[residual]}, outputs={**norm.outputs, "residual": total}
    )
    return graph.with_ops(block, (*ops[:position], fused, *(op for op in ops[position + 1 :] if op is not norm)))


def _dies_here(graph: Graph, block: str, position: int, tensor: str) -> bool:
    """Whether the op at `position` may overwrite the tensor: nobody reads it later, and it reads it once."""
    ops = graph.ops(block)
    once = list(ops[position].inputs.values()).count(tensor) == 1
    read_later = bool(readers(ops[position + 1 :], tensor)) or graph.is_carried(block, tensor)
    kept = graph.is_marked(block, tensor) or tensor in EXTERNAL_TENSORS
    return once and not read_later and not kept
