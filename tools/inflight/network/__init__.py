"""Define networks: PyTorch-like modules over symbolic tensors, traced into a structured graph.

    class Tiny(Module):
        def __init__(self):
            super().__init__()
            self.embedding = Embedding(100, 16)
            self.layers = Repeat(2, lambda offset: TinyLayer())
            self.norm = RmsNorm(16)
            self.head = Linear(16, 100)

        def forward(self, inputs: Inputs) -> Tensor:
            x = self.layers(self.embedding(inputs.token_ids))
            return self.head(gather_rows(self.norm(x), inputs.logits_rows))

A parameter's name is its path ("layers.{layer}.norm.weight"), which is also the checkpoint tensor's name unless the
definition's table says otherwise.
"""

from inflight.network.definition import Definition, Facts
from inflight.network.graph import Graph, Slice, Source
from inflight.network.module import Module, Parameter
from inflight.network.ops import (
    activation,
    add,
    attention,
    embedding,
    gated_activation,
    gather_rows,
    layer_norm,
    linear,
    mark_output,
    rms_norm,
    rope_kv_write,
    silu_mul,
)
from inflight.network.rope import NO_ROPE, Rope, rope_from_config
from inflight.network.standard import Attention, Embedding, GatedMlp, LayerNorm, Linear, Mlp, Repeat, RmsNorm
from inflight.network.trace import Inputs, Tensor, trace

__all__ = [
    "NO_ROPE",
    "Attention",
    "Definition",
    "Embedding",
    "Facts",
    "GatedMlp",
    "Graph",
    "Inputs",
    "LayerNorm",
    "Linear",
    "Mlp",
    "Module",
    "Parameter",
    "Repeat",
    "RmsNorm",
    "Rope",
    "Slice",
    "Source",
    "Tensor",
    "activation",
    "add",
    "attention",
    "embedding",
    "gated_activation",
    "gather_rows",
    "layer_norm",
    "linear",
    "mark_output",
    "rms_norm",
    "rope_from_config",
    "rope_kv_write",
    "silu_mul",
    "trace",
]
