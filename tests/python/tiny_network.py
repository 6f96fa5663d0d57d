"""A network of one's own in one file: two kinds of layers in turn, a sliding window, ALiBi and a marked output."""

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
    Tensor,
    gather_rows,
    mark_output,
)

WIDTH, VOCABULARY, LAYERS = 16, 29, 4


class TinyLayer(Module):
    def __init__(self, offset: int):
        super().__init__()
        options = {"window": 3, "soft_cap": 5.0} if offset == 0 else {"alibi_slopes": (0.5, 0.25)}
        self.norm = LayerNorm(WIDTH, bias=False)
        self.attention = Attention(WIDTH, num_heads=2, num_kv_heads=1, **options)
        self.mlp = Mlp(WIDTH, 24, "relu", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        mark_output(x, f"middle_{self.attention.options.get('window', 0)}")
        return x + self.mlp(x)


class Tiny(Module):
    def __init__(self):
        super().__init__()
        self.embedding = Embedding(VOCABULARY, WIDTH)
        self.layers = Repeat(LAYERS, TinyLayer, unit=2)
        self.norm = LayerNorm(WIDTH, bias=False)
        self.head = Linear(WIDTH, VOCABULARY, bias=True)

    def forward(self, inputs: Inputs) -> Tensor:
        x = self.layers(self.embedding(inputs.token_ids))
        return self.head(gather_rows(self.norm(x), inputs.logits_rows))


def define(config) -> Definition:
    return Definition(Tiny(), Facts("tiny", VOCABULARY, WIDTH, max_positions=32))
