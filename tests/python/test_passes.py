"""Each pass alone: what it rewrites, and when it keeps its hands off."""

import re
from dataclasses import replace

import pytest

from inflight.errors import UnsupportedError
from inflight.network import (
    NO_ROPE,
    Attention,
    Embedding,
    GatedMlp,
    LayerNorm,
    Linear,
    Mlp,
    Module,
    Repeat,
    RmsNorm,
    gather_rows,
    mark_output,
    ops,
    trace,
)
from inflight.network.graph import BLOCKS
from inflight.passes import fuse_add_norm, merge_linears, rotate_norms, run_passes, shard

HIDDEN, HEADS, KV_HEADS, INNER, VOCABULARY = 16, 4, 2, 24, 50


class Layer(Module):
    """A pre-norm layer. mark: name of the local tensor to mark; post_norm: the norm behind the addition instead."""

    def __init__(self, mlp, norm, mark=None, post_norm=False, bias=False):
        super().__init__()
        self.norm = norm()
        self.attention = Attention(HIDDEN, HEADS, KV_HEADS, bias=bias)
        self.mlp_norm = norm()
        self.mlp = mlp(bias)
        self.mark, self.post_norm = mark, post_norm

    def forward(self, x):
        if self.post_norm:
            return self.mlp_norm(x + self.attention(x))
        normed = self.norm(x)
        middle = x + self.attention(normed)
        inner = self.mlp(self.mlp_norm(middle))
        result = middle + inner
        named = {"normed": normed, "middle": middle, "inner": inner, "result": result}
        if self.mark:
            mark_output(named[self.mark], self.mark)
        return result


class Network(Module):
    def __init__(self, layers=3, mlp=None, norm=None, final_norm=None, mark_final=False, **options):
        super().__init__()
        norm = norm or (lambda: RmsNorm(HIDDEN))
        mlp = mlp or (lambda bias: GatedMlp(HIDDEN, INNER, bias=bias))
        self.embedding = Embedding(VOCABULARY, HIDDEN)
        self.layers = Repeat(layers, lambda offset: Layer(mlp, norm, **options))
        self.norm = (final_norm or norm)()
        self.head = Linear(HIDDEN, VOCABULARY)
        self.mark_final = mark_final

    def forward(self, inputs):
        x = self.norm(self.layers(self.embedding(inputs.token_ids)))
        if self.mark_final:
            mark_output(x, "final")
        return self.head(gather_rows(x, inputs.logits_rows))


def names(graph, block="layers"):
    return [op.op for op in graph.ops(block)]


def only(graph, op_name, block="layers"):
    (found,) = [op for op in graph.ops(block) if op.op == op_name]
    return found


def with_body(body):
    """The graph of a network whose layer computes body(layer, x)."""

    class Custom(Layer):
        def forward(self, x):
            return body(self, x)

    network = Network()
    layer = Custom(lambda bias: GatedMlp(HIDDEN, INNER), lambda: RmsNorm(HIDDEN))
    network.layers = Repeat(3, lambda offset: layer)
    return trace(network)


class TestMerge:
    def test_qkv(self):
        before = trace(Network(bias=True))
        graph = merge_linears(before)
        rope = only(graph, "rope_kv_write")
        assert rope.inputs == {"qkv": "attention.qkv"}
        linear = graph.layers[names(graph).index("linear")]
        assert linear.inputs == {"x": "norm"} and linear.outputs == {"out": "attention.qkv"}
        assert linear.weights == {
            "weight": "layers.{layer}.attention.qkv.weight",
            "bias": "layers.{layer}.attention.qkv.bias",
        }
        for layer in range(3):
            weight = graph.weights[f"layers.{layer}.attention.qkv.weight"]
            assert weight.shape == (HIDDEN + HIDDEN, HIDDEN)
            assert [source.tensor for source in weight.sources] == [
                f"layers.{layer}.attention.{part}.weight" for part in "qkv"
            ]
            assert graph.weights[f"layers.{layer}.attention.qkv.bias"].shape == (2 * HIDDEN,)
        assert not [name for name in graph.weights if re.search(r"attention\.[qkv]\.", name)]

    def test_gate_up(self):
        graph = merge_linears(trace(Network()))
        assert only(graph, "gated_activation").inputs == {"x": "mlp.gate_up"}
        weight = graph.weights["layers.2.mlp.gate_up.weight"]
        assert weight.shape == (2 * INNER, HIDDEN)
        assert [source.tensor for source in weight.sources] == ["layers.2.mlp.gate.weight", "layers.2.mlp.up.weight"]

    def test_ungated_mlp_is_left_alone(self):
        graph = merge_linears(trace(Network(mlp=lambda bias: Mlp(HIDDEN, INNER))))
        assert names(graph).count("linear") == 4 and "layers.0.mlp.up.weight" in graph.weights

    def test_dtypes_must_agree(self):
        graph = trace(Network())
        name = "layers.1.mlp.up.weight"
        mixed = {key: replace(weight, dtype="float32") for key, weight in graph.weights.items()}
        mixed[name] = replace(mixed[name], dtype="float16")
        with pytest.raises(UnsupportedError, match="'layers.1.mlp.up.weight' is float16, .* float32"):
            merge_linears(replace(graph, weights=mixed))

    @pytest.mark.parametrize("body, text", [
        (lambda layer, x: attend(layer, x, q=layer.norm(layer.attention.q(x))), "q ('norm') comes from rms_norm"),
        (lambda layer, x: attend(layer, x, v=layer.attention.v(layer.norm(x))), "v ('attention.v') reads 'norm'"),
        (lambda layer, x: attend(layer, x, k=mark_output(layer.attention.k(x), "k")), "k ('attention.k') is marked"),
        (lambda layer, x: attend(layer, x, q=(q := layer.attention.q(x))) + q, "q ('attention.q') is read by"),
    ])  # fmt: skip
    def test_what_cannot_be_merged_is_named(self, body, text):
        with pytest.raises(UnsupportedError, match=re.escape(text)):
            merge_linears(with_body(body))

    def test_biases_must_agree(self):
        network = Network()
        network.layers.units[0].attention.k = Linear(HIDDEN, HIDDEN // 2, bias=True)
        with pytest.raises(UnsupportedError, match=r"has \['bias', 'weight'\], the first part \['weight'\]"):
            merge_linears(trace(network))


def attend(layer, x, q=None, k=None, v=None):
    """x + attention with some of q, k, v replaced."""
    heads = (HEADS, KV_HEADS, HIDDEN // HEADS)
    parts = (q or layer.attention.q(x), k or layer.attention.k(x), v or layer.attention.v(x))
    q = ops.rope_kv_write(*parts, *heads, NO_ROPE)
    return x + layer.attention.out(ops.attention(q, *heads))


class TestRotate:
    def test_norms_move_to_the_end_of_the_unit_before(self):
        before = trace(Network())
        graph = rotate_norms(before)
        assert names(graph, "prologue") == ["embedding", "rms_norm"]
        assert names(graph) == names(before)[1:] + ["rms_norm"]
        assert names(graph, "epilogue") == ["gather_rows", "linear"]
        assert graph.carry == (("embedding", "add.2"), ("norm", "norm.next"))
        assert graph.prologue[-1].inputs == {"x": "embedding"} and graph.prologue[-1].outputs == {"out": "norm"}
        assert graph.layers[-1].inputs == {"x": "add.2"} and graph.layers[-1].outputs == {"out": "norm.next"}
        assert graph.epilogue[0].inputs["x"] == "norm"

    def test_weights_become_one_family_of_names(self):
        graph = rotate_norms(trace(Network()))
        assert graph.prologue[-1].weights == {"weight": "norm.0.weight"}
        assert graph.layers[-1].weights == {"weight": "norm.{layer+1}.weight"}
        found = {name: weight.sources[0].tensor for name, weight in graph.weights.items() if name.startswith("norm.")}
        assert found == {f"norm.{i}.weight": f"layers.{i}.norm.weight" for i in range(3)} | {
            "norm.3.weight": "norm.weight"
        }

    @pytest.mark.parametrize("options", [
        {"post_norm": True},
        {"mark": "normed"},
        {"mark": "result"},
        {"mark_final": True},
        {"final_norm": lambda: RmsNorm(HIDDEN, epsilon=0.5)},
        {"final_norm": lambda: LayerNorm(HIDDEN)},
        {"norm": lambda: LayerNorm(HIDDEN, bias=True), "final_norm": lambda: LayerNorm(HIDDEN, bias=False)},
    ], ids=str)  # fmt: skip
    def test_kept_where_it_would_change_something(self, options):
        graph = trace(Network(**options))
        assert rotate_norms(graph) == graph

    def test_kept_when_layers_share_the_norm(self):
        network = Network()
        outer = RmsNorm(HIDDEN)
        network.shared = outer
        network.layers = Repeat(3, lambda offset: SharedNormLayer(outer))
        graph = trace(network)
        assert rotate_norms(graph) == graph


class SharedNormLayer(Module):
    def __init__(self, norm):
        super().__init__()
        object.__setattr__(self, "norm", norm)
        self.attention = Attention(HIDDEN, HEADS)

    def forward(self, x):
        return x + self.attention(self.norm(x))


class TestFuse:
    def test_add_and_norm_become_one_op(self):
        graph = fuse_add_norm(trace(Network()))
        fused = [op for op in graph.layers if "residual" in op.inputs]
        assert len(fused) == 1 and names(graph).count("add") == 1
        assert fused[0].op == "rms_norm"
        assert fused[0].inputs == {"x": "attention.out", "residual": "embedding"}
        assert fused[0].outputs == {"out": "mlp_norm", "residual": "add"}

    def test_across_the_layer_boundary(self):
        graph = fuse_add_norm(rotate_norms(trace(Network())))
        assert "add" not in names(graph)
        assert graph.layers[-1].inputs == {"x": "mlp.down", "residual": "add"}
        assert graph.layers[-1].outputs == {"out": "norm.next", "residual": "add.2"}

    def test_layer_norm_with_bias(self):
        graph = fuse_add_norm(rotate_norms(trace(Network(norm=lambda: LayerNorm(HIDDEN)))))
        fused = [op for op in graph.layers if op.op == "layer_norm"]
        assert len(fused) == 2 and all(op.inputs.keys() == {"x", "residual"} for op in fused)
        assert fused[1].weights == {"weight": "norm.{layer+1}.weight", "bias": "norm.{layer+1}.bias"}

    @pytest.mark.parametrize("mark, adds", [("middle", 1), ("result", 1), ("inner", 0)])
    def test_marked_tensors(self, mark, adds):
        """A marked sum stays; its neighbours are fused. A marked x is only read, so that its sum may be fused."""
        graph = fuse_add_norm(rotate_norms(trace(Network(mark=mark))))
        assert names(graph).count("add") == adds

    @pytest.mark.parametrize("body", [
        lambda layer, x: x + layer.mlp_norm(x + layer.attention(x)) + x,
        lambda layer, x: mark_output(layer.norm(x), "n") + layer.mlp_norm(layer.attention(x) + layer.attention(x)) + x,
        lambda layer, x: layer.mlp_norm(x + x) + layer.attention(x),
    ], ids=["residual read later", "marked", "x + x"])  # fmt: skip
    def test_residual_that_is_needed_elsewhere(self, body):
        """x lives on, so x cannot be the residual that is overwritten; the other operand may be."""
        for op in fuse_add_norm(with_body(body)).layers:
            assert op.inputs.get("residual") != "embedding"

    def test_doubled_tensor_is_not_fused(self):
        graph = fuse_add_norm(with_body(lambda layer, x: layer.mlp_norm(x + x)))
        assert names(graph) == ["add", "rms_norm"]


class TestShard:
    def sharded(self, **options):
        return shard(merge_linears(trace(Network(**options))))

    def weight(self, graph, name):
        found = graph.weights[name]
        return found.shard, [source.units for source in found.sources]

    def test_weights(self):
        graph = self.sharded(bias=True)
        for layer in range(3):
            prefix = f"layers.{layer}."
            for kind in ("weight", "bias"):
                assert self.weight(graph, f"{prefix}attention.qkv.{kind}") == ("axis0", [HEADS, KV_HEADS, KV_HEADS])
                assert self.weight(graph, f"{prefix}mlp.gate_up.{kind}") == ("axis0", [INNER, INNER])
            assert self.weight(graph, f"{prefix}attention.out.weight") == ("axis1", [HEADS])
            assert self.weight(graph, f"{prefix}mlp.down.weight") == ("axis1", [INNER])
            assert self.weight(graph, f"{prefix}attention.out.bias") == ("first_rank", [None])
            assert self.weight(graph, f"{prefix}norm.weight") == ("replicated", [None])
        assert self.weight(graph, "head.weight") == ("axis0", [VOCABULARY])
        assert self.weight(graph, "embedding.weight") == ("replicated", [None])

    def test_ungated_mlp(self):
        graph = self.sharded(mlp=lambda bias: Mlp(HIDDEN, INNER))
        assert self.weight(graph, "layers.0.mlp.up.bias") == ("axis0", [INNER])
        assert self.weight(graph, "layers.0.mlp.down.weight") == ("axis1", [INNER])
        assert self.weight(graph, "layers.0.mlp.down.bias") == ("first_rank", [None])

    def test_collectives(self):
        graph = self.sharded()
        reduces = [position for position, op in enumerate(graph.layers) if op.op == "all_reduce"]
        assert len(reduces) == 2
        for position in reduces:
            before, reduce = graph.layers[position - 1], graph.layers[position]
            assert before.op == "linear" and before.outputs["out"] == reduce.inputs["x"]
        assert [graph.layers[position].outputs["out"] for position in reduces] == ["attention.out", "mlp.down"]
        assert names(graph, "epilogue")[-2:] == ["linear", "all_gather"]
        assert graph.epilogue[-1].outputs == {"out": "logits"} and graph.epilogue[-2].outputs == {"out": "logits.shard"}

    def test_linear_that_feeds_nothing_divisible_is_replicated(self):
        graph = shard(merge_linears(with_body(lambda layer, x: layer.attention.out(x) + layer.attention(x))))
        first = next(op for op in graph.layers if op.op == "linear")
        assert first.outputs["out"] == "attention.out"

    def test_weight_used_in_two_ways_is_refused(self):
        def body(layer, x):
            return layer.attention(x) + layer.attention.out(ops.activation(layer.attention.out(x), "relu"))

        with pytest.raises(UnsupportedError, match="'layers.0.attention.out.weight' is needed divided as axis1 and as"):
            shard(merge_linears(with_body(body)))

    @pytest.mark.parametrize("body, whole", [
        (lambda layer, x: x + attend_marked(layer, x), "attention"),
        (lambda layer, x: x + layer.mlp.down(mark_output(gate(layer, x), "m")), "gated_activation"),
    ], ids=["attention", "activation"])  # fmt: skip
    def test_marked_part_is_gathered(self, body, whole):
        graph = shard(merge_linears(with_body(body)))
        gather = only(graph, "all_gather")
        assert gather.inputs == {"x": f"{whole}.shard"} and gather.outputs == {"out": whole}
        assert graph.outputs[0].tensor == whole
        assert [op.op for op in graph.layers if f"{whole}.shard" in op.inputs.values()] == ["all_gather", "linear"]

    def test_divided_tensor_is_gathered_for_ops_that_need_it_whole(self):
        graph = shard(merge_linears(with_body(lambda layer, x: x + attention_only(layer, x))))
        assert names(graph)[-2:] == ["all_gather", "add"]
        assert graph.layers[-2].inputs == {"x": "attention"}
        assert graph.layers[-1].inputs == {"a": "embedding", "b": "attention.whole"}


def attention_only(layer, x):
    heads = (HEADS, KV_HEADS, HIDDEN // HEADS)
    q = ops.rope_kv_write(layer.attention.q(x), layer.attention.k(x), layer.attention.v(x), *heads, NO_ROPE)
    return ops.attention(q, *heads)


def attend_marked(layer, x):
    return layer.attention.out(mark_output(attention_only(layer, x), "a"))


def gate(layer, x):
    return ops.silu_mul(layer.mlp.gate(x), layer.mlp.up(x))


@pytest.mark.parametrize("options", [{}, {"post_norm": True}, {"mark": "middle"}, {"bias": True}], ids=str)
def test_all_passes_leave_a_graph_that_hangs_together(options):
    """Every tensor is assigned once and before its use, and the weights table holds what the ops name, no more."""
    graph = run_passes(trace(Network(**options)))
    entries = {entry for entry, _ in graph.carry}
    for block in BLOCKS:
        known = {"token_ids", "positions", "logits_rows"} | (entries if block != "prologue" else set())
        for op in graph.ops(block):
            assert set(op.inputs.values()) <= known
            assert not set(op.outputs.values()) & known
            known |= set(op.outputs.values())
    used = {name for op in graph.all_ops() for pattern in op.weights.values() for name in graph.expand(pattern)}
    assert used == graph.weights.keys()
