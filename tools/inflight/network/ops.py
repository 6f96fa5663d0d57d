"""The ops of networks, as functions over symbolic tensors. Shapes are checked here, while tracing.

T = packed tokens, H = width of x. The kernels' headers declare what each op computes.
"""

from inflight.errors import NetworkError
from inflight.network.module import Parameter
from inflight.network.rope import Rope
from inflight.network.trace import Tensor

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


def embedding(ids: Tensor, table: Parameter) -> Tensor:
    """out[t] = table[ids[t]]: ids [T] indices, table [V, H] -> [T, H]."""
    _want(ids, "embedding", ids.width == 0, f"ids {ids.shape}", "indices")
    _want_rank(ids, "embedding", "table", table, 2)
    return ids.tracer.record("embedding", {"ids": ids}, {"table": table}, (ids.rows, table.shape[1]))


def linear(x: Tensor, weight: Parameter, bias: Parameter | None = None) -> Tensor:
    """out = x · weightᵀ + bias: x [T, K], weight [N, K], bias [N] -> [T, N]."""
    _want_rank(x, "linear", "weight", weight, 2)
    wanted, width = weight.shape[1], weight.shape[0]
    _want(x, "linear", x.width == wanted, f"x {x.shape}", f"[{x.rows}, {wanted}] for weight {list(weight.shape)}")
    _want_vector(x, "linear", "bias", bias, width)
    return x.tracer.record("linear", {"x": x}, {"weight": weight, "bias": bias}, (x.rows, width))


def rms_norm(x: Tensor, weight: Parameter, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + epsilon) · weight: x [T, H], weight [H] -> [T, H]."""
    _want_vector(x, "rms_norm", "weight", weight, x.width)
    attributes = {"epsilon": float(epsilon)}
    return x.tracer.record("rms_norm", {"x": x}, {"weight": weight}, (x.rows, x.width), attributes)


def layer_norm(x: Tensor, weight: Parameter, bias: Parameter | None, epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) · weight + bias: x [T, H], weight and bias [H] -> [T, H]."""
    _want_vector(x, "layer_norm", "weight", weight, x.width)
    _want_vector(x, "layer_norm", "bias", bias, x.width)
    attributes = {"epsilon": float(epsilon)}
    return x.tracer.record("layer_norm", {"x": x}, {"weight": weight, "bias": bias}, (x.rows, x.width), attributes)


def rope_kv_write(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, num_kv_heads: int, head_size: int, rope: Rope
) -> Tensor:
    """Rotates q [T, Hq · D] and k [T, Hkv · D] by position, writes k and v to the layer's cache, returns rotated q."""
    _want_heads(q, "rope_kv_write", "q", num_heads, head_size)
    _want_heads(k, "rope_kv_write", "k", num_kv_heads, head_size)
    _want_heads(v, "rope_kv_write", "v", num_kv_heads, head_size)
    rotated = 2 * len(rope.inverse_frequencies)
    _want(q, "rope_kv_write", rotated <= head_size, f"{rotated} rotated elements a head", f"at most {head_size}")
    attributes = {
        "layer": _layer(q, "rope_kv_write"),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_size": head_size,
        "inverse_frequencies": list(rope.inverse_frequencies),
        "rope_scale": rope.scale,
        "interleaved": rope.interleaved,
    }
    return q.tracer.record("rope_kv_write", {"q": q, "k": k, "v": v}, {}, (q.rows, q.width), attributes, "q")


def attention(
    q: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: tuple[float, ...] = (),
) -> Tensor:
    """Causal attention of q [T, Hq · D] over the layer's cache -> [T, Hq · D]. scale defaults to 1 / sqrt(D).

    window > 0: a query sees so many positions, its own included. soft_cap > 0: scores become cap · tanh(score / cap).
    alibi_slopes: none or one a query head.
    """
    _want_heads(q, "attention", "q", num_heads, head_size)
    _want(q, "attention", num_heads % num_kv_heads == 0, f"{num_heads} heads", f"a multiple of {num_kv_heads} KV heads")
    _want(q, "attention", len(alibi_slopes) in (0, num_heads), f"{len(alibi_slopes)} slopes", f"0 or {num_heads}")
    attributes = {
        "layer": _layer(q, "attention"),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_size": head_size,
        "scale": head_size**-0.5 if scale is None else float(scale),
        "window": window,
        "soft_cap": float(soft_cap),
        "alibi_slopes": list(alibi_slopes),
    }
    return q.tracer.record("attention", {"q": q}, {}, (q.rows, q.width), attributes)


def activation(x: Tensor, kind: str) -> Tensor:
    """silu, gelu, gelu_tanh or relu, elementwise."""
    _want_activation(x, "activation", kind)
    return x.tracer.record("activation", {"x": x}, {}, (x.rows, x.width), {"activation": kind})


def gated_activation(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """activation(gate) · up, elementwise."""
    _want_activation(gate, "gated_activation", kind)
    _want_same(gate, up, "gated_activation", "gate", "up")
    inputs = {"gate": gate, "up": up}
    return gate.tracer.record("gated_activation", inputs, {}, (gate.rows, gate.width), {"activation": kind})


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, elementwise."""
    return gated_activation(gate, up, "silu")


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b, elementwise; `a + b` on tensors calls it."""
    _want_same(a, b, "add", "a", "b")
    return a.tracer.record("add", {"a": a, "b": b}, {}, (a.rows, a.width))


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """out[i] = x[rows[i]]: x [T, H], rows [L] indices -> [L, H]."""
    _want(x, "gather_rows", rows.width == 0, f"rows {rows.shape}", "indices")
    return x.tracer.record("gather_rows", {"x": x, "rows": rows}, {}, (rows.rows, x.width))


def mark_output(tensor: Tensor, name: str) -> Tensor:
    """Marks a tensor for debugging: the executor can return it under this name (in a layer: one per layer)."""
    tensor.tracer.mark_output(tensor, name)
    return tensor


def _want(x: Tensor, op: str, condition: bool, found: str, wanted: str):
    if not condition:
        raise NetworkError(f"{x.tracer.where(op)}: found {found}, wanted {wanted}")


def _want_rank(x: Tensor, op: str, key: str, parameter: Parameter, rank: int):
    is_parameter = isinstance(parameter, Parameter)
    found = f"{key} {list(parameter.shape)}" if is_parameter else f"{key} of type {type(parameter).__name__}"
    _want(x, op, is_parameter and len(parameter.shape) == rank, found, f"a parameter of {rank} dimensions")


def _want_vector(x: Tensor, op: str, key: str, parameter: Parameter | None, size: int):
    if parameter is not None:
        _want_rank(x, op, key, parameter, 1)
        _want(x, op, parameter.shape == (size,), f"{key} {list(parameter.shape)}", f"[{size}]")


def _want_heads(x: Tensor, op: str, key: str, heads: int, head_size: int):
    wanted = f"[{x.rows}, {heads * head_size}] for {heads} heads of {head_size}"
    _want(x, op, x.width == heads * head_size and x.rows == "tokens", f"{key} {x.shape}", wanted)


def _want_same(a: Tensor, b: Tensor, op: str, first: str, second: str):
    same = (a.rows, a.width) == (b.rows, b.width) and a.width > 0
    _want(a, op, same, f"{first} {a.shape} and {second} {b.shape}", "two tensors of one shape")


def _want_activation(x: Tensor, op: str, kind: str):
    _want(x, op, kind in ACTIVATIONS, f"activation {kind!r}", f"one of {', '.join(ACTIVATIONS)}")


def _layer(x: Tensor, op: str) -> int:
    offset = x.tracer.layer_offset
    _want(x, op, offset is not None, "it outside the layers", "it inside a Repeat")
    return offset
