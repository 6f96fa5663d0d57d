"""Llama 1, 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024): pre-norm, rotary GQA attention, gated MLP."""

from collections.abc import Mapping

from inflight.models.config import activation, refuse, size
from inflight.network import (
    Attention,
    Definition,
    Embedding,
    Facts,
    GatedMlp,
    Inputs,
    Linear,
    Module,
    Repeat,
    RmsNorm,
    Tensor,
    gather_rows,
    rope_from_config,
)

_PLAIN = {"pretraining_tp": 1, "partial_rotary_factor": 1.0, "sliding_window": None, "add_cross_attention": False}

_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.{layer}.input_norm.weight": "model.layers.{layer}.input_layernorm.weight",
    "layers.{layer}.mlp_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_LINEARS = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


class LlamaLayer(Module):
    def __init__(self, config: Mapping):
        super().__init__()
        hidden = size(config, "hidden_size")
        heads = size(config, "num_attention_heads")
        head_size = size(config, "head_dim", hidden // heads)
        kv_heads = size(config, "num_key_value_heads", heads)
        epsilon = config.get("rms_norm_eps", 1e-6)
        rope, bias = rope_from_config(config, head_size), bool(config.get("attention_bias"))
        self.input_norm = RmsNorm(hidden, epsilon)
        self.attention = Attention(hidden, heads, kv_heads, head_size, rope, bias)
        self.mlp_norm = RmsNorm(hidden, epsilon)
        kind, mlp_bias = activation(config, "hidden_act", "silu"), bool(config.get("mlp_bias"))
        self.mlp = GatedMlp(hidden, size(config, "intermediate_size"), kind, mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.input_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Llama(Module):
    def __init__(self, config: Mapping):
        super().__init__()
        vocabulary, hidden = size(config, "vocab_size"), size(config, "hidden_size")
        self.embedding = Embedding(vocabulary, hidden)
        self.layers = Repeat(size(config, "num_hidden_layers"), lambda offset: LlamaLayer(config))
        self.norm = RmsNorm(hidden, config.get("rms_norm_eps", 1e-6))
        self.head = Linear(hidden, vocabulary)

    def forward(self, inputs: Inputs) -> Tensor:
        x = self.layers(self.embedding(inputs.token_ids))
        return self.head(gather_rows(self.norm(x), inputs.logits_rows))


def define(config: Mapping) -> Definition:
    refuse(config, _PLAIN)
    tied = bool(config.get("tie_word_embeddings", False))
    names = dict(_NAMES)
    for ours, theirs in _LINEARS.items():
        for kind in ("weight", "bias"):
            names[f"layers.{{layer}}.{ours}.{kind}"] = f"model.layers.{{layer}}.{theirs}.{kind}"
    if tied:
        names["head.weight"] = names["embedding.weight"]
    return Definition(
        Llama(config),
        Facts(
            family="llama",
            vocabulary_size=size(config, "vocab_size"),
            hidden_size=size(config, "hidden_size"),
            max_positions=size(config, "max_position_embeddings", 2048),
        ),
        names,
        optional_prefix="model.",
        ignorable=(r"\.rotary_emb\.inv_freq$", *((r"^lm_head\.weight$",) if tied else ())),
    )
