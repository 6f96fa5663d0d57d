"""Tracing: running a network's forward() once on symbolic tensors records the graph."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from inflight.errors import NetworkError
from inflight.network.graph import BLOCKS, EXTERNAL_TENSORS, Graph, Op, Output, Source, Weight, at_layer, rename_outputs
from inflight.network.module import Module, Parameter


@dataclass(frozen=True)
class Tensor:
    """A symbolic tensor [rows, width]: rows is "tokens" (packed) or "logits" (the rows whose logits are wanted).

    width 0 stands for a list of indices, [rows] int32.
    """

    tracer: "Tracer" = field(repr=False, compare=False)
    name: str
    block: str
    rows: str
    width: int

    @property
    def shape(self) -> str:
        return f"[{self.rows}, {self.width}]" if self.width else f"[{self.rows}] indices"

    def __add__(self, other: "Tensor") -> "Tensor":
        from inflight.network.ops import add

        return add(self, other)


class Inputs(NamedTuple):
    """What every network's forward() gets."""

    token_ids: Tensor  # [tokens] indices
    positions: Tensor  # [tokens] indices: place of the token in its sequence, from 0
    logits_rows: Tensor  # [logits] indices: the tokens whose logits are wanted


class Tracer:
    """The graph being recorded. Networks see it only through the ops."""

    def __init__(self):
        self.block = "prologue"
        self.layer_offset: int | None = None
        self.ops: dict[str, list[Op]] = {block: [] for block in BLOCKS}
        self.parameters: dict[str, Parameter] = {}
        self.outputs: list[Output] = []
        self.repeat = self.unit = 0
        self.carry: list[tuple[str, str]] = []
        self._modules: list[Module] = []
        self._taken: set[str] = set(EXTERNAL_TENSORS)

    def external(self, name: str, rows: str) -> Tensor:
        return Tensor(self, name, "external", rows, 0)

    @contextmanager
    def scope(self, module: Module) -> Iterator[None]:
        self._modules.append(module)
        try:
            yield
        finally:
            self._modules.pop()

    def where(self, op: str) -> str:
        """Names the op in error texts."""
        path = self._modules[-1].path if self._modules else ""
        return f"{op} in {path!r}" if path else op

    def record(
        self,
        op: str,
        inputs: Mapping[str, Tensor],
        weights: Mapping[str, Parameter | None],
        out: tuple[str, int],
        attributes: Mapping[str, object] | None = None,
        out_name: str = "out",
    ) -> Tensor:
        """Adds an op with one output of shape out = (rows, width) and returns that output."""
        for key, tensor in inputs.items():
            self._check_reachable(op, key, tensor)
        used = {key: self._use(op, parameter) for key, parameter in weights.items() if parameter is not None}
        result = Tensor(self, self._new_name(op), self.block, *out)
        names = {key: tensor.name for key, tensor in inputs.items()}
        self.ops[self.block].append(Op(op, names, {out_name: result.name}, used, attributes or {}))
        return result

    def repeat_unit(self, count: int, units: list[Module], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Traces one unit of layers and returns its results as the epilogue sees them."""
        if self.block != "prologue":
            raise NetworkError("a network has one Repeat; found a second one")
        for tensor in tensors:
            self._check_reachable("Repeat", "carry", tensor)
        self._enter("layers", tensors)
        carried = tuple(self._in_block(tensor) for tensor in tensors)
        for self.layer_offset, layer in enumerate(units):
            result = layer(*carried)
            carried = result if isinstance(result, tuple) else (result,)
            self._check_carry(tensors, carried)
        self.layer_offset = None
        self.repeat, self.unit = count // len(units), len(units)
        self.carry = [(entry.name, leave.name) for entry, leave in zip(tensors, carried, strict=True)]
        self._enter("epilogue", tensors)
        return tuple(self._in_block(tensor) for tensor in tensors)

    def mark_output(self, tensor: Tensor, name: str):
        if any(output.name == name for output in self.outputs):
            raise NetworkError(f"two tensors are marked as output {name!r}")
        if tensor.block != self.block:
            raise NetworkError(f"output {name!r}: mark tensor {tensor.name!r} in its own block, {tensor.block}")
        self.outputs.append(Output(name, tensor.name, tensor.block))

    def _enter(self, block: str, carried: tuple[Tensor, ...]):
        self.block = block
        self._taken = {*EXTERNAL_TENSORS, *(tensor.name for tensor in carried)}

    def _in_block(self, tensor: Tensor) -> Tensor:
        return Tensor(self, tensor.name, self.block, tensor.rows, tensor.width)

    def _check_reachable(self, op: str, key: str, tensor: Tensor):
        if not isinstance(tensor, Tensor):
            raise NetworkError(f"{self.where(op)}: {key} is a {type(tensor).__name__}, wanted a symbolic tensor")
        if tensor.block not in (self.block, "external"):
            raise NetworkError(
                f"{self.where(op)}: {key} is tensor {tensor.name!r} of the {tensor.block}, used in the {self.block}; "
                "hand it through Repeat"
            )

    def _check_carry(self, entry: tuple[Tensor, ...], leave: tuple[Tensor, ...]):
        found, wanted = [tensor.shape for tensor in leave], [tensor.shape for tensor in entry]
        if found != wanted:
            raise NetworkError(f"Repeat: a layer returns {found}, wanted the shapes of its inputs, {wanted}")

    def _use(self, op: str, parameter: Parameter) -> str:
        if parameter.name is None:
            raise NetworkError(f"{self.where(op)}: {parameter} belongs to no module of the network")
        self.parameters[parameter.name] = parameter
        return parameter.name

    def _new_name(self, op: str) -> str:
        module = self._modules[-1] if self._modules else None
        path = _path_in_block(module.path if module else "")
        base = path if path and module.is_leaf else ".".join(filter(None, (path, op)))
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base}.{count}"
        self._taken.add(name)
        return name


def trace(network: Module) -> Graph:
    """Runs network.forward(Inputs) on symbolic tensors. It returns the logits, [logits, vocabulary].

    Weights come out unbound: each is stored under its own name, dtype unknown.
    """
    network.assign_names()
    tracer = Tracer()
    inputs = Inputs(
        tracer.external("token_ids", "tokens"),
        tracer.external("positions", "tokens"),
        tracer.external("logits_rows", "logits"),
    )
    with tracer.scope(network):
        logits = network.forward(inputs)
    _check_logits(tracer, logits)
    return _graph(tracer, logits)


def _check_logits(tracer: Tracer, logits: Tensor):
    if tracer.block != "epilogue":
        raise NetworkError("the network has no Repeat; wanted one around its layers")
    if not isinstance(logits, Tensor) or logits.block != "epilogue" or logits.rows != "logits":
        found = f"{logits.shape} of the {logits.block}" if isinstance(logits, Tensor) else type(logits).__name__
        raise NetworkError(f"forward() returns {found}, wanted the logits, [logits, vocabulary] of the epilogue")


def _graph(tracer: Tracer, logits: Tensor) -> Graph:
    names = {logits.name: "logits"}
    graph = Graph(
        prologue=tuple(tracer.ops["prologue"]),
        layers=tuple(tracer.ops["layers"]),
        epilogue=tuple(rename_outputs(op, names) for op in tracer.ops["epilogue"]),
        repeat=tracer.repeat,
        unit=tracer.unit,
        carry=tuple(tracer.carry),
        weights={},
        outputs=tuple(_renamed(output, names) for output in tracer.outputs),
    )
    for pattern, parameter in tracer.parameters.items():
        for name in graph.expand(pattern):
            graph.weights[name] = Weight(parameter.shape, (Source(name),))
    return graph


def _renamed(output: Output, names: Mapping[str, str]) -> Output:
    in_epilogue = output.block == "epilogue"
    return Output(output.name, names.get(output.tensor, output.tensor) if in_epilogue else output.tensor, output.block)


def _path_in_block(path: str) -> str:
    """A module's path with the Repeat's own part left off; the second layer of a unit keeps its offset."""
    if "{layer" not in path:
        return path
    head, _, tail = path.partition("}")
    offset = at_layer("{layer" + head.rpartition("{layer")[2] + "}", 0)
    tail = tail.removeprefix(".")
    return tail if offset == "0" else ".".join(filter(None, (offset, tail)))
