"""What the plan's schema cannot say: the op vocabulary, and that every name an op uses is defined.

The C++ engine reads the same vocabulary; an op that is not here does not reach it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from inflight.errors import PlanError
from inflight.network.graph import EXTERNAL_TENSORS, at_layer


@dataclass(frozen=True)
class _Spec:
    """Operand names of an op; a trailing "?" marks an optional one."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


_HEADS = ("layer", "num_heads", "num_kv_heads", "head_size")

OPS: dict[str, _Spec] = {
    "embedding": _Spec(("ids",), ("out",), ("table",)),
    "linear": _Spec(("x",), ("out",), ("weight", "bias?")),
    "rms_norm": _Spec(("x", "residual?"), ("out", "residual?"), ("weight",), ("epsilon",)),
    "layer_norm": _Spec(("x", "residual?"), ("out", "residual?"), ("weight", "bias?"), ("epsilon",)),
    "rope_kv_write": _Spec(("qkv",), ("q",), (), (*_HEADS, "inverse_frequencies", "rope_scale", "interleaved")),
    "attention": _Spec(("q",), ("out",), (), (*_HEADS, "scale", "window", "soft_cap", "alibi_slopes")),
    "activation": _Spec(("x",), ("out",), (), ("activation",)),
    "gated_activation": _Spec(("x",), ("out",), (), ("activation",)),
    "add": _Spec(("a", "b"), ("out",)),
    "gather_rows": _Spec(("x", "rows"), ("out",)),
    "all_reduce": _Spec(("x",), ("out",)),
    "all_gather": _Spec(("x",), ("out",)),
}


def check_plan(plan: Mapping):
    """Raises PlanError naming the block, op and tensor or weight. The plan fits the schema already."""
    blocks, layers = plan["blocks"], plan["blocks"]["layers"]
    entries = [entry for entry, _ in layers["carry"]]
    weights = plan["weights"].keys()
    num_layers = plan["network"]["num_layers"]
    if layers["repeat"] * layers["unit"] != num_layers:
        raise PlanError(f"layers: repeat {layers['repeat']} x unit {layers['unit']}, wanted {num_layers} layers")
    starts = range(0, num_layers, layers["unit"])
    defined = {
        "prologue": _check_block("prologue", blocks["prologue"], (), weights, ()),
        "layers": _check_block("layers", layers["ops"], entries, weights, starts),
        "epilogue": _check_block("epilogue", blocks["epilogue"], entries, weights, ()),
    }
    for entry, leave in layers["carry"]:
        _want_tensor("prologue", "carry", entry, defined["prologue"])
        _want_tensor("layers", "carry", leave, defined["layers"] | set(entries))
    _want_tensor("epilogue", "the plan", "logits", defined["epilogue"])
    for output in plan["outputs"]:
        _want_tensor(output["block"], f"output {output['name']!r}", output["tensor"], defined[output["block"]])
    if plan["kv_cache"] != kv_cache_entries(layers["ops"], layers["repeat"], layers["unit"]):
        raise PlanError("kv_cache does not have the head counts, head sizes and windows of the attention ops")


def kv_cache_entries(ops: Iterable[Mapping], repeat: int, unit: int) -> list[dict]:
    """One entry a layer, from the unit's attention ops: exactly one a layer, behind its rope_kv_write."""
    found: dict[int, dict] = {}
    written: set[int] = set()
    for op in ops:
        attributes = op["attributes"]
        if op["op"] == "rope_kv_write":
            written.add(attributes["layer"])
        if op["op"] != "attention":
            continue
        layer = attributes["layer"]
        if layer in found or layer not in written:
            problem = "a second attention op" if layer in found else "attention before rope_kv_write"
            raise PlanError(f"layers: layer {layer} of the unit has {problem}")
        sizes = {"kv_heads": attributes["num_kv_heads"], "head_size": attributes["head_size"]}
        found[layer] = sizes | {"window": attributes["window"]}
    if sorted(found) != list(range(unit)):
        raise PlanError(f"layers: attention in layers {sorted(found)} of the unit, wanted one in each of {unit}")
    return [found[layer] for layer in range(unit)] * repeat


def _check_block(
    block: str, ops: Iterable[Mapping], entries: Iterable[str], weights: Iterable[str], starts: Iterable[int]
) -> set[str]:
    """Checks the ops in order and returns the tensors that they define. starts: the first layer of each unit."""
    reachable = {*EXTERNAL_TENSORS, *entries}
    defined: set[str] = set()
    for position, op in enumerate(ops):
        where = f"op {position} ({op['op']})"
        _check_operands(block, where, op)
        for name in op["inputs"].values():
            _want_tensor(block, where, name, reachable | defined)
        for pattern in op["weights"].values():
            for name in {at_layer(pattern, start) for start in starts} or {pattern}:
                if name not in weights:
                    raise PlanError(f"{block}, {where}: weight {name!r} is not in the weights table")
        for name in op["outputs"].values():
            if name in reachable | defined:
                raise PlanError(f"{block}, {where}: tensor {name!r} is assigned twice")
            defined.add(name)
    return defined


def _check_operands(block: str, where: str, op: Mapping):
    if op["op"] not in OPS:
        raise PlanError(f"{block}, {where}: unknown op; known: {', '.join(OPS)}")
    spec = OPS[op["op"]]
    for kind in ("inputs", "outputs", "weights", "attributes"):
        known = [name.removesuffix("?") for name in getattr(spec, kind)]
        required = {name for name in getattr(spec, kind) if not name.endswith("?")}
        found = op[kind].keys()
        if not required <= found <= set(known):
            raise PlanError(f"{block}, {where}: {kind} are {sorted(found)}, wanted {list(getattr(spec, kind))}")
    if ("residual" in op["inputs"]) != ("residual" in op["outputs"]):
        raise PlanError(f"{block}, {where}: residual goes in and out, found only one of both")


def _want_tensor(block: str, where: str, name: str, reachable: set[str]):
    if name not in reachable:
        raise PlanError(f"{block}, {where}: tensor {name!r} is not defined before")
