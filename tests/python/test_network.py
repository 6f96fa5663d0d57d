"""The definition API: registration, tracing, shape checks, and a network of one's own from file to logits."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tiny_network
from inflight import cli, plan
from inflight.errors import NetworkError, PlanError
from inflight.network import (
    Attention,
    Embedding,
    GatedMlp,
    Linear,
    Module,
    Parameter,
    Repeat,
    RmsNorm,
    Rope,
    gather_rows,
    layer_norm,
    linear,
    mark_output,
    ops,
    rope_kv_write,
    silu_mul,
    trace,
)
from inflight.passes import run_passes
from inflight.plan_check import kv_cache_entries
from plan_interpreter import Interpreter


class Layer(Module):
    def __init__(self, body=None):
        super().__init__()
        self.norm = RmsNorm(8)
        self.attention = Attention(8, 2)
        self.narrow = Linear(8, 4)
        self.body = body

    def forward(self, x):
        return self.body(self, x) if self.body else x + self.attention(self.norm(x))


class Network(Module):
    """A whole small network; `layer` and `head` replace its parts."""

    def __init__(self, layer=None, count=2, unit=1, head=None):
        super().__init__()
        self.embedding = Embedding(10, 8)
        self.layers = Repeat(count, layer or (lambda offset: Layer()), unit)
        self.norm = RmsNorm(8)
        self.head = Linear(8, 10)
        self.forward_head = head

    def forward(self, inputs):
        x = self.layers(self.embedding(inputs.token_ids))
        if self.forward_head:
            return self.forward_head(self, inputs, x)
        return self.head(gather_rows(self.norm(x), inputs.logits_rows))


def test_trace_structure():
    graph = trace(Network())
    assert [op.op for op in graph.prologue] == ["embedding"]
    assert [op.op for op in graph.layers] == [
        "rms_norm", "linear", "linear", "linear", "rope_kv_write", "attention", "linear", "add",
    ]  # fmt: skip
    assert [op.op for op in graph.epilogue] == ["rms_norm", "gather_rows", "linear"]
    assert (graph.repeat, graph.unit, graph.carry) == (2, 1, (("embedding", "add"),))
    assert graph.epilogue[-1].outputs == {"out": "logits"}
    assert graph.layers[1].weights == {"weight": "layers.{layer}.attention.q.weight"}
    assert graph.weights["layers.1.attention.q.weight"].shape == (8, 8)
    assert graph.weights.keys() == {
        "embedding.weight", "norm.weight", "head.weight",
        *(f"layers.{i}.{name}.weight" for i in (0, 1)
          for name in ("norm", "attention.q", "attention.k", "attention.v", "attention.out")),
    }  # fmt: skip


def test_unit_of_several_layers():
    graph = trace(tiny_network.Tiny())
    assert (graph.repeat, graph.unit, graph.num_layers) == (2, 2, 4)
    layers = [(op.attributes["layer"], op.attributes["window"]) for op in graph.layers if op.op == "attention"]
    assert layers == [(0, 3), (1, 0)]
    assert "layers.{layer+1}.mlp.up.weight" in {name for op in graph.layers for name in op.weights.values()}
    assert graph.expand("layers.{layer+1}.mlp.up.weight") == ["layers.1.mlp.up.weight", "layers.3.mlp.up.weight"]
    assert "layers.3.mlp.up.weight" in graph.weights


def test_parameters_outside_the_layers_are_shared_by_them():
    class Shared(Network):
        def __init__(self):
            super().__init__(lambda offset: Layer(lambda layer, x: x + self.shared(self.layers.units[0].attention(x))))
            self.shared = Linear(8, 8)

    graph = trace(Shared())
    assert graph.expand("shared.weight") == ["shared.weight"]
    assert graph.weights["shared.weight"].shape == (8, 8)


def in_layer(body):
    return lambda: trace(Network(lambda offset: Layer(body)))


def with_head(head):
    return lambda: trace(Network(head=head))


def double_use(network, inputs, x):
    return network.head(gather_rows(network.layers(x), inputs.logits_rows))


def leak():
    """The prologue's tensor used inside the layers without being carried."""
    seen = []

    class Leaky(Network):
        def forward(self, inputs):
            seen.append(self.embedding(inputs.token_ids))
            return self.layers(seen[0] + seen[0])

    return trace(Leaky(lambda offset: Layer(lambda layer, x: x + seen[0])))


def shared_parameter():
    network = Network()
    network.head.weight = network.embedding.weight
    return trace(network)


def rope_in_layer(pairs):
    return in_layer(lambda layer, x: rope_kv_write(x, x, x, 2, 2, 4, Rope((1.0,) * pairs)))


WRONG = {
    "linear": (in_layer(lambda layer, x: linear(x, Parameter(4, 9))),
               "linear in 'layers.{layer}': found x [tokens, 8], "
               "wanted [tokens, 9] for weight [4, 9]"),
    "linear bias": (in_layer(lambda layer, x: linear(x, Parameter(4, 8), Parameter(5))), "found bias [5], wanted [4]"),
    "linear rank": (in_layer(lambda layer, x: linear(x, Parameter(8))), "found weight [8], wanted a parameter of 2"),
    "norm": (in_layer(lambda layer, x: layer_norm(x, Parameter(8), Parameter(7), 1e-5)), "found bias [7], wanted [8]"),
    "add": (in_layer(lambda layer, x: x + layer.narrow(x)), "found a [tokens, 8] and b [tokens, 4]"),
    "silu_mul": (in_layer(lambda layer, x: silu_mul(x, layer.narrow(x))), "found gate [tokens, 8] and up [tokens, 4]"),
    "activation": (in_layer(lambda layer, x: ops.activation(x, "tan")), "found activation 'tan', wanted one of silu"),
    "heads": (in_layer(lambda layer, x: ops.attention(x, 3, 3, 4)), "wanted [tokens, 12] for 3 heads of 4"),
    "groups": (in_layer(lambda layer, x: ops.attention(x, 8, 3, 1)), "found 8 heads, wanted a multiple of 3 KV heads"),
    "slopes": (in_layer(lambda layer, x: ops.attention(x, 2, 2, 4, alibi_slopes=(1.0,))), "1 slopes, wanted 0 or 2"),
    "rope": (rope_in_layer(3), "found 6 rotated elements a head, wanted at most 4"),
    "carry": (in_layer(lambda layer, x: layer.narrow(x)), "returns ['[tokens, 4]'], wanted the shapes of its inputs"),
    "carry count": (in_layer(lambda layer, x: (x, x)), "a layer returns ['[tokens, 8]', '[tokens, 8]']"),
    "ids": (in_layer(lambda layer, x: Embedding(4, 8)(x)), "found ids [tokens, 8], wanted indices"),
    "rows": (with_head(lambda network, inputs, x: network.head(x)), "returns [tokens, 10] of the epilogue, wanted"),
    "no attention": (with_head(lambda network, inputs, x: ops.attention(x, 2, 2, 4)), "wanted it inside a Repeat"),
    "second repeat": (with_head(double_use), "a network has one Repeat"),
    "leak": (leak, "tensor 'embedding' of the prologue, used in the layers; hand it through Repeat"),
    "tied": (shared_parameter, "'head.weight' is the same object as 'embedding.weight'; to tie two weights"),
    "unit": (lambda: Network(count=3, unit=2), "found 3 layers in units of 2"),
    "marked twice": (with_head(lambda network, inputs, x: mark_output(mark_output(x, "a"), "a")), "as output 'a'"),
    "stray parameter": (in_layer(lambda layer, x: linear(x, Parameter(8, 8))), "belongs to no module"),
    "parameter": (lambda: Parameter(0), "positive integer sizes, found [0]"),
    "untraced": (lambda: Linear(2, 2)("x"), "without a symbolic tensor"),
}  # fmt: skip


@pytest.mark.parametrize("define, text", WRONG.values(), ids=WRONG)
def test_wrong_definitions_are_named(define, text):
    with pytest.raises(NetworkError, match=re.escape(text)):
        define()


def test_network_without_repeat():
    class Flat(Network):
        def forward(self, inputs):
            return self.head(gather_rows(self.embedding(inputs.token_ids), inputs.logits_rows))

    with pytest.raises(NetworkError, match="has no Repeat"):
        trace(Flat())


def test_forgotten_super_init():
    class Forgetful(Module):
        def __init__(self):
            self.weight = Parameter(3)

    with pytest.raises(NetworkError, match="call super"):
        Forgetful()


def tiny_checkpoint(directory: Path) -> dict[str, np.ndarray]:
    """Random weights under the parameters' own names."""
    generator = np.random.default_rng(5)
    shapes = {name: weight.shape for name, weight in trace(tiny_network.Tiny()).weights.items()}
    weights = {name: generator.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    directory.mkdir()
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    return weights


def tiny_reference(w: dict[str, np.ndarray], tokens: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The tiny network written out again: logits [T, V] and x after each layer's attention."""

    def norm(x, weight):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight

    x, middles = w["embedding.weight"][tokens], []
    for i in range(tiny_network.LAYERS):
        own = {name.removeprefix(f"layers.{i}."): value for name, value in w.items() if name.startswith(f"layers.{i}.")}
        n = norm(x, own["norm.weight"])
        q, k, v = (n @ own[f"attention.{part}.weight"].T for part in "qkv")
        heads = []
        for head in range(2):
            mixed = np.zeros((len(tokens), 8), np.float32)
            for t in range(len(tokens)):
                seen = range(max(0, t - 2), t + 1) if i % 2 == 0 else range(t + 1)
                scores = np.array([q[t, head * 8 : head * 8 + 8] @ k[j] / math.sqrt(8) for j in seen])
                distance = np.array([t - j for j in seen])
                scores = 5 * np.tanh(scores / 5) if i % 2 == 0 else scores - (0.5, 0.25)[head] * distance
                share = np.exp(scores) / np.exp(scores).sum()
                mixed[t] = share @ v[list(seen)]
            heads.append(mixed)
        x = x + np.concatenate(heads, -1) @ own["attention.out.weight"].T
        middles.append(x)
        x = x + np.maximum(x @ own["mlp.up.weight"].T, 0) @ own["mlp.down.weight"].T
    return norm(x, w["norm.weight"]) @ w["head.weight"].T + w["head.bias"], middles


def test_own_network_from_file_to_logits(tmp_path):
    weights = tiny_checkpoint(tmp_path / "tiny")
    network_file = str(Path(tiny_network.__file__))
    command = ["build", str(tmp_path / "tiny"), "-o", str(tmp_path / "engine"), "--network", network_file]
    assert cli.main(command) == 0
    written = plan.read(tmp_path / "engine")
    assert [output["name"] for output in written["outputs"]] == ["middle_3", "middle_0"]
    assert [layer["window"] for layer in written["kv_cache"]] == [3, 0, 3, 0]
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    interpreter = Interpreter(tmp_path / "engine")
    logits, middles = tiny_reference(weights, tokens)
    np.testing.assert_allclose(interpreter.run(tokens), logits, atol=1e-4, rtol=0)
    np.testing.assert_allclose(interpreter.outputs["middle_3"], middles[0::2], atol=1e-4, rtol=0)
    np.testing.assert_allclose(interpreter.outputs["middle_0"], middles[1::2], atol=1e-4, rtol=0)


def test_network_file_without_define(tmp_path, capsys):
    (tmp_path / "empty.py").write_text("")
    command = ["build", str(tmp_path), "-o", str(tmp_path / "engine"), "--network"]
    assert cli.main([*command, str(tmp_path / "empty.py")]) == 1
    assert "has no function define" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "absent.py")]) == 1
    assert "not a file" in capsys.readouterr().err


def test_layer_without_attention_is_refused():
    class Plain(Module):
        def __init__(self):
            super().__init__()
            self.mlp = GatedMlp(8, 12)

        def forward(self, x):
            return x + self.mlp(x)

    graph = run_passes(trace(Network(lambda offset: Plain(), count=1)))
    ops_of_layers = [{"op": op.op, "attributes": op.attributes} for op in graph.layers]
    with pytest.raises(PlanError, match=r"attention in layers \[\] of the unit, wanted one in each of 1"):
        kv_cache_entries(ops_of_layers, 1, 1)
