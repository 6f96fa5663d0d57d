"""The modules that most networks are made of."""

from collections.abc import Callable

from inflight.errors import NetworkError
from inflight.network import ops
from inflight.network.module import Module, Parameter
from inflight.network.rope import NO_ROPE, Rope
from inflight.network.trace import Tensor


class Linear(Module):
    """x [T, in] -> [T, out]. Weight [out, in], as in torch."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.weight = Parameter(out_features, in_features)
        self.bias = Parameter(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Indices [T] -> [T, width]."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = Parameter(count, width)

    def forward(self, ids: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight)


class RmsNorm(Module):
    def __init__(self, width: int, epsilon: float = 1e-5):
        super().__init__()
        self.weight = Parameter(width)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.epsilon)


class LayerNorm(Module):
    def __init__(self, width: int, epsilon: float = 1e-5, bias: bool = True):
        super().__init__()
        self.weight = Parameter(width)
        self.bias = Parameter(width) if bias else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.epsilon)


class Attention(Module):
    """Projections, rotary embedding, cached causal attention and output projection: [T, H] -> [T, H].

    Keyword options (scale, window, soft_cap, alibi_slopes) go to ops.attention.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_size: int | None = None,
        rope: Rope = NO_ROPE,
        bias: bool = False,
        out_bias: bool | None = None,
        **options,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_size = head_size or hidden_size // num_heads
        self.rope = rope
        self.options = options
        self.q = Linear(hidden_size, self.num_heads * self.head_size, bias)
        self.k = Linear(hidden_size, self.num_kv_heads * self.head_size, bias)
        self.v = Linear(hidden_size, self.num_kv_heads * self.head_size, bias)
        self.out = Linear(self.num_heads * self.head_size, hidden_size, bias if out_bias is None else out_bias)

    def forward(self, x: Tensor) -> Tensor:
        heads = (self.num_heads, self.num_kv_heads, self.head_size)
        q = ops.rope_kv_write(self.q(x), self.k(x), self.v(x), *heads, self.rope)
        return self.out(ops.attention(q, *heads, **self.options))


class Mlp(Module):
    """down(activation(up(x)))."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str = "gelu", bias: bool = True):
        super().__init__()
        self.up = Linear(hidden_size, intermediate_size, bias)
        self.down = Linear(intermediate_size, hidden_size, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.activation(self.up(x), self.activation))


class GatedMlp(Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str = "silu", bias: bool = False):
        super().__init__()
        self.gate = Linear(hidden_size, intermediate_size, bias)
        self.up = Linear(hidden_size, intermediate_size, bias)
        self.down = Linear(intermediate_size, hidden_size, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.gated_activation(self.gate(x), self.up(x), self.activation))


class Repeat(Module):
    """`count` layers in a row, traced once: make(offset) builds the layer at that offset within a unit of layers.

    Called with the tensors that go from layer to layer; returns what the last layer returns. A unit of several layers
    serves networks whose layers alternate.
    """

    def __init__(self, count: int, make: Callable[[int], Module], unit: int = 1):
        super().__init__()
        if unit < 1 or count < 1 or count % unit:
            raise NetworkError(f"Repeat: found {count} layers in units of {unit}, wanted a positive multiple")
        self.count = count
        self.units = [make(offset) for offset in range(unit)]
        for offset, layer in enumerate(self.units):
            self._modules[f"{{layer+{offset}}}" if offset else "{layer}"] = layer

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        results = tensors[0].tracer.repeat_unit(self.count, self.units, tensors)
        return results[0] if len(results) == 1 else results
