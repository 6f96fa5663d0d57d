"""GPT-2 (Radford et al. 2019): pre-LayerNorm, learned positions, biases everywhere, GELU."""

from collections.abc import Mapping

from inflight.models.config import activation, refuse, size
from inflight.network import (
    Attention,
    Definition,
    Embedding,
    Facts,
    Inputs,
    LayerNorm,
    Linear,
    Mlp,
    Module,
    Repeat,
    Slice,
    Source,
    Tensor,
    gather_rows,
)

_PLAIN = {"scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False, "add_cross_attention": False}

_NAMES = {
    "embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
_NORMS = {"input_norm": "ln_1", "mlp_norm": "ln_2"}
_LINEARS = {"attention.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


class Gpt2Layer(Module):
    def __init__(self, config: Mapping):
        super().__init__()
        hidden, heads = size(config, "n_embd"), size(config, "n_head")
        epsilon = config.get("layer_norm_epsilon", 1e-5)
        scale = None if config.get("scale_attn_weights", True) else 1.0
        self.input_norm = LayerNorm(hidden, epsilon)
        self.attention = Attention(hidden, heads, bias=True, scale=scale)
        self.mlp_norm = LayerNorm(hidden, epsilon)
        kind = activation(config, "activation_function", "gelu_new")
        self.mlp = Mlp(hidden, size(config, "n_inner", 4 * hidden), kind)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.input_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Gpt2(Module):
    def __init__(self, config: Mapping):
        super().__init__()
        vocabulary, hidden = size(config, "vocab_size"), size(config, "n_embd")
        self.embedding = Embedding(vocabulary, hidden)
        self.position_embedding = Embedding(size(config, "n_positions", 1024), hidden)
        self.layers = Repeat(size(config, "n_layer"), lambda offset: Gpt2Layer(config))
        self.norm = LayerNorm(hidden, config.get("layer_norm_epsilon", 1e-5))
        self.head = Linear(hidden, vocabulary)

    def forward(self, inputs: Inputs) -> Tensor:
        x = self.embedding(inputs.token_ids) + self.position_embedding(inputs.positions)
        return self.head(gather_rows(self.norm(self.layers(x)), inputs.logits_rows))


def define(config: Mapping) -> Definition:
    refuse(config, _PLAIN)
    tied = config.get("tie_word_embeddings", True)
    names = _NAMES | _layer_names(size(config, "n_embd"))
    if tied:
        names["head.weight"] = names["embedding.weight"]
    return Definition(
        Gpt2(config),
        Facts(
            family="gpt2",
            vocabulary_size=size(config, "vocab_size"),
            hidden_size=size(config, "n_embd"),
            max_positions=size(config, "n_positions", 1024),
        ),
        names,
        optional_prefix="transformer.",
        ignorable=(r"\.attn\.(masked_)?bias$", *((r"^lm_head\.weight$",) if tied else ())),
    )


def _layer_names(hidden: int) -> dict[str, str | Source]:
    """Linear weights are stored [in, out], and q, k, v side by side in one tensor."""
    ours, theirs = "layers.{layer}.", "transformer.h.{layer}."
    names: dict[str, str | Source] = {}
    for norm, stored in _NORMS.items():
        for kind in ("weight", "bias"):
            names[f"{ours}{norm}.{kind}"] = f"{theirs}{stored}.{kind}"
    for linear, stored in _LINEARS.items():
        names[f"{ours}{linear}.weight"] = Source(f"{theirs}{stored}.weight", transpose=True)
        names[f"{ours}{linear}.bias"] = f"{theirs}{stored}.bias"
    for part, name in enumerate("qkv"):
        start, stop = part * hidden, (part + 1) * hidden
        columns, rows = Slice(1, start, stop, 3 * hidden), Slice(0, start, stop, 3 * hidden)
        names[f"{ours}attention.{name}.weight"] = Source(f"{theirs}attn.c_attn.weight", transpose=True, slice=columns)
        names[f"{ours}attention.{name}.bias"] = Source(f"{theirs}attn.c_attn.bias", slice=rows)
    return names
