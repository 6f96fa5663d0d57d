"""The graph that tracing makes and passes rewrite: prologue, a repeated unit of layers, epilogue.

Graphs are values: a pass returns a new one. Ops name their tensors and weights; weight names inside the layers block
hold "{layer}" or "{layer+K}", while the weights table lists every layer's weight under its own name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

EXTERNAL_TENSORS = ("token_ids", "positions", "logits_rows")
BLOCKS = ("prologue", "layers", "epilogue")

_LAYER = re.compile(r"\{layer(?:\+(\d+))?\}")


@dataclass(frozen=True)
class Slice:
    """Rows (axis 0) or columns (axis 1) [start, stop) of a stored tensor that has `extent` of them."""

    axis: int
    start: int
    stop: int
    extent: int


@dataclass(frozen=True)
class Source:
    """A checkpoint tensor, or a slice of it, that makes up (part of) a weight. `units`: see the plan schema."""

    tensor: str
    transpose: bool = False
    slice: Slice | None = None
    units: int | None = None
    file: str | None = None


@dataclass(frozen=True)
class Weight:
    """A recipe: sources end to end along axis 0. dtype is unknown until the graph is bound to a checkpoint."""

    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    shard: str = "replicated"
    dtype: str | None = None


@dataclass(frozen=True)
class Op:
    """One operation. Operands map the op's own names for them to tensor and weight names."""

    op: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    weights: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """A tensor that the user marked, to be returned under `name`."""

    name: str
    tensor: str
    block: str


@dataclass(frozen=True)
class Graph:
    """prologue, then `layers` run `repeat` times (each run covers `unit` layers), then epilogue.

    carry: (name at entry, name at exit) of the tensors handed from unit to unit. The prologue defines the entry names
    and the epilogue reads the last unit's exits under the entry names.
    """

    prologue: tuple[Op, ...]
    layers: tuple[Op, ...]
    epilogue: tuple[Op, ...]
    repeat: int
    unit: int
    carry: tuple[tuple[str, str], ...]
    weights: Mapping[str, Weight]
    outputs: tuple[Output, ...] = ()

    @property
    def num_layers(self) -> int:
        return self.repeat * self.unit

    def ops(self, block: str) -> tuple[Op, ...]:
        return getattr(self, block)

    def with_ops(self, block: str, ops: Iterable[Op]) -> "Graph":
        return replace(self, **{block: tuple(ops)})

    def all_ops(self) -> Iterable[Op]:
        for block in BLOCKS:
            yield from self.ops(block)

    def expand(self, pattern: str) -> list[str]:
        """The names that a weight name of the layers block stands for, one a unit (one in all without "{layer}")."""
        return list(dict.fromkeys(at_layer(pattern, layer) for layer in range(0, self.num_layers, self.unit)))

    def is_marked(self, block: str, tensor: str) -> bool:
        return any(output.block == block and output.tensor == tensor for output in self.outputs)

    def is_carried(self, block: str, tensor: str) -> bool:
        """Whether the tensor leaves its block: at the prologue's end or at a unit's exit."""
        side = {"prologue": 0, "layers": 1}.get(block)
        return side is not None and any(pair[side] == tensor for pair in self.carry)

    def drop_unused_weights(self) -> "Graph":
        used = {name for op in self.all_ops() for pattern in op.weights.values() for name in self.expand(pattern)}
        return replace(self, weights={name: weight for name, weight in self.weights.items() if name in used})


def at_layer(pattern: str, layer: int) -> str:
    """Fills in "{layer}" and "{layer+K}"."""
    return _LAYER.sub(lambda match: str(layer + int(match[1] or 0)), pattern)


def readers(ops: Iterable[Op], tensor: str) -> list[Op]:
    return [op for op in ops if tensor in op.inputs.values()]


def producer(ops: Iterable[Op], tensor: str) -> Op | None:
    return next((op for op in ops if tensor in op.outputs.values()), None)


def rename_inputs(op: Op, names: Mapping[str, str]) -> Op:
    return replace(op, inputs={key: names.get(name, name) for key, name in op.inputs.items()})


def rename_outputs(op: Op, names: Mapping[str, str]) -> Op:
    return replace(op, outputs={key: names.get(name, name) for key, name in op.outputs.items()})


def tensor_names(ops: Iterable[Op]) -> set[str]:
    return {name for op in ops for name in (*op.inputs.values(), *op.outputs.values())}
