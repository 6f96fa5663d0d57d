"""Marks how tensor-parallel ranks divide each weight, and inserts the collectives (Shoeybi et al. 2019, "Megatron-LM").

The pass follows the tensors: a linear that feeds attention or an activation is column-parallel, the linear that reads
the divided result is row-parallel and followed by all_reduce, the head is column-parallel over the vocabulary and
followed by all_gather. Everything else is replicated.
"""

from collections.abc import Sequence
from dataclasses import replace

from inflight.errors import UnsupportedError
from inflight.network.graph import BLOCKS, Graph, Op, Weight, readers, rename_inputs, rename_outputs

_KEEP_DIVISION = ("rope_kv_write", "attention", "activation", "gated_activation")


def shard(graph: Graph) -> Graph:
    for block in BLOCKS:
        graph = _Sharder(graph, block).run()
    return graph


class _Sharder:
    """Walks one block in order. divided: tensor -> units that it is divided by (the ranks hold parts of its width)."""

    def __init__(self, graph: Graph, block: str):
        self.graph = graph
        self.block = block
        self.source = graph.ops(block)
        self.ops: list[Op] = []
        self.weights = dict(graph.weights)
        self.divided: dict[str, int] = {}
        self.gathered: dict[str, str] = {}

    def run(self) -> Graph:
        for position in range(len(self.source)):
            self._visit(self.source[position])
        return replace(self.graph.with_ops(self.block, self.ops), weights=self.weights)

    def _visit(self, op: Op):
        if op.op == "linear":
            self._linear(op)
        elif op.op in _KEEP_DIVISION:
            self._keep_division(op)
        else:
            self.ops.append(rename_inputs(op, {name: self._whole(name) for name in op.inputs.values()}))

    def _linear(self, op: Op):
        x, out = op.inputs["x"], op.outputs["out"]
        units = self._units_of_consumer(op)
        if x in self.divided:
            self._mark(op, "weight", "axis1", [self.divided[x]])
            self._mark(op, "bias", "first_rank", None)
            self._append_collective(op, "all_reduce", "partial")
        elif self._is_logits(out):
            self._mark_columns(op, [self._rows(op)])
            self._append_collective(op, "all_gather", "shard")
        elif units:
            self._mark_columns(op, units)
            self.ops.append(op)
            self.divided[out] = units[0]
            self._gather_if_kept(op)
        else:
            self.ops.append(op)

    def _keep_division(self, op: Op):
        x = next(iter(op.inputs.values()))
        if x not in self.divided and op.op in ("rope_kv_write", "attention"):
            raise UnsupportedError(f"{op.op}: {x!r} is not made by a linear; wanted one, to divide the heads")
        self.ops.append(op)
        if x in self.divided:
            self.divided[next(iter(op.outputs.values()))] = self.divided[x]
            self._gather_if_kept(op)

    def _units_of_consumer(self, op: Op) -> list[int] | None:
        """Units of each source of the linear's weight, if what reads its output can work on a part of the width."""
        uses = readers(self.source, op.outputs["out"])
        if len(uses) != 1:
            return None
        use = uses[0]
        if use.op == "rope_kv_write":
            heads, kv_heads = use.attributes["num_heads"], use.attributes["num_kv_heads"]
            return [heads, kv_heads, kv_heads]
        feeds_linear = [reader.op for reader in readers(self.source, next(iter(use.outputs.values())))] == ["linear"]
        if use.op == "gated_activation" and feeds_linear:
            return [self._rows(op) // 2] * 2
        return [self._rows(op)] if use.op == "activation" and feeds_linear else None

    def _rows(self, op: Op) -> int:
        return self.weights[self.graph.expand(op.weights["weight"])[0]].shape[0]

    def _is_logits(self, tensor: str) -> bool:
        return self.block == "epilogue" and tensor == "logits"

    def _mark_columns(self, op: Op, units: Sequence[int]):
        self._mark(op, "weight", "axis0", units)
        self._mark(op, "bias", "axis0", units)

    def _mark(self, op: Op, key: str, how: str, units: Sequence[int] | None):
        for name in self.graph.expand(op.weights[key]) if key in op.weights else ():
            self.weights[name] = _divided(name, self.weights[name], how, units)

    def _append_collective(self, op: Op, collective: str, suffix: str):
        """The collective's result takes over the tensor's name, so that readers and marked outputs see it whole."""
        out = op.outputs["out"]
        part = f"{out}.{suffix}"
        self.ops.append(rename_outputs(op, {out: part}))
        self.ops.append(Op(collective, {"x": part}, {"out": out}))

    def _gather_if_kept(self, op: Op):
        """A divided tensor that is marked as output or leaves the block is needed whole."""
        name = next(iter(op.outputs.values()))
        if self.graph.is_marked(self.block, name) or self.graph.is_carried(self.block, name):
            part = f"{name}.shard"
            self.ops[-1] = rename_outputs(op, {name: part})
            self.ops.append(Op("all_gather", {"x": part}, {"out": name}))
            self.divided[part] = self.divided.pop(name)
            self.source = tuple(rename_inputs(later, {name: part}) for later in self.source)

    def _whole(self, name: str) -> str:
        """The name under which a divided tensor is whole, gathered on first use."""
        if name not in self.divided:
            return name
        if name not in self.gathered:
            self.gathered[name] = f"{name}.whole"
            self.ops.append(Op("all_gather", {"x": name}, {"out": self.gathered[name]}))
        return self.gathered[name]


def _divided(name: str, weight: Weight, how: str, units: Sequence[int] | None) -> Weight:
    if weight.shard not in ("replicated", how):
        raise UnsupportedError(f"weight {name!r} is needed divided as {weight.shard} and as {how}; wanted one way")
    if units is None:
        return replace(weight, shard=how)
    sources = tuple(replace(source, units=count) for source, count in zip(weight.sources, units, strict=True))
    return replace(weight, shard=how, sources=sources)
