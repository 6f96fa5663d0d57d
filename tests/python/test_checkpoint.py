"""Headers, and what is wrong between a checkpoint and its network."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import make_gpt2, make_llama, random_tokens, transformers_logits
from inflight import plan
from inflight.checkpoint import Checkpoint, StoredTensor, read_header
from inflight.errors import CheckpointError, UnsupportedError
from plan_interpreter import Interpreter


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    return {"llama": make_llama(root / "llama"), "gpt2": make_gpt2(root / "gpt2")}


def edited(originals, family, directory, change):
    """A copy of a checkpoint after change(tensors)."""
    shutil.copytree(originals[family], directory)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


def build(checkpoint, tmp_path):
    """The plan and the warnings."""
    warnings = []
    engine = plan.build(checkpoint, tmp_path / "engine", warn=warnings.append)
    return engine, warnings


def test_header_equals_safetensors(originals):
    found = read_header(originals["llama"] / "model.safetensors")
    wanted = load_file(originals["llama"] / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert found["model.norm.weight"] == StoredTensor("model.safetensors", "F32", (32,))
    assert all(found[name].shape == tensor.shape for name, tensor in wanted.items())


def test_gpt2_without_prefix(originals, tmp_path):
    def strip(tensors):
        for name in [name for name in tensors if name.startswith("transformer.")]:
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    engine, warnings = build(edited(originals, "gpt2", tmp_path / "bare", strip), tmp_path)
    tokens = random_tokens(97)
    wanted = transformers_logits(originals["gpt2"], tokens)
    np.testing.assert_allclose(Interpreter(engine).run(tokens), wanted, atol=1e-4, rtol=0)
    assert warnings == []


@pytest.mark.parametrize("family, name, shape", [
    ("llama", "model.layers.1.self_attn.k_proj.weight", [16, 32]),
    ("llama", "lm_head.weight", [101, 32]),
    ("gpt2", "transformer.h.2.attn.c_attn.weight", [32, 96]),
])  # fmt: skip
def test_missing_tensor(originals, tmp_path, family, name, shape):
    checkpoint = edited(originals, family, tmp_path / "x", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=re.escape(f"tensor '{name}' {shape} is missing")):
        build(checkpoint, tmp_path)


@pytest.mark.parametrize("family, name, found, wanted", [
    ("llama", "model.layers.0.mlp.up_proj.weight", (47, 32), [48, 32]),
    ("gpt2", "transformer.h.0.attn.c_attn.weight", (32, 97), [32, 96]),
    ("gpt2", "transformer.h.0.attn.c_attn.bias", (95,), [96]),
    ("gpt2", "transformer.h.0.mlp.c_fc.weight", (128, 32), [32, 128]),
])  # fmt: skip
def test_wrong_shape(originals, tmp_path, family, name, found, wanted):
    change = {name: np.zeros(found, np.float32)}
    checkpoint = edited(originals, family, tmp_path / "x", lambda tensors: tensors.update(change))
    with pytest.raises(CheckpointError, match=re.escape(f"tensor '{name}' is {list(found)}, wanted {wanted}")):
        build(checkpoint, tmp_path)


def test_many_problems_are_counted(originals, tmp_path):
    checkpoint = edited(originals, "llama", tmp_path / "x", lambda tensors: tensors.clear())
    with pytest.raises(CheckpointError, match=r"is missing.*; and 25 more"):
        build(checkpoint, tmp_path)


def test_leftover_tensors_are_reported_in_one_line(originals, tmp_path):
    extra = {"model.adapter.weight": np.zeros((2, 2), np.float32)}
    checkpoint = edited(originals, "llama", tmp_path / "x", lambda tensors: tensors.update(extra))
    _, warnings = build(checkpoint, tmp_path)
    assert len(warnings) == 1 and "1 tensors are not used by the network: model.adapter.weight" in warnings[0]


IGNORABLE = {
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    "gpt2": ["transformer.h.0.attn.bias", "h.1.attn.masked_bias", "lm_head.weight"],
}


@pytest.mark.parametrize("family", IGNORABLE)
def test_known_leftovers_are_silent(originals, tmp_path, family):
    extra = {name: np.zeros((2, 2), np.float32) for name in IGNORABLE[family]}
    checkpoint = edited(originals, family, tmp_path / "x", lambda tensors: tensors.update(extra))
    assert build(checkpoint, tmp_path)[1] == []


def test_dtypes(originals, tmp_path):
    name = "model.layers.0.self_attn.k_proj.weight"

    def halve(tensors):
        tensors[name] = tensors[name].astype(np.float16)

    with pytest.raises(UnsupportedError, match="'layers.0.attention.k.weight' is float16, .* float32"):
        build(edited(originals, "llama", tmp_path / "mixed", halve), tmp_path)
    integers = {name: np.zeros((16, 32), np.int8)}
    checkpoint = edited(originals, "llama", tmp_path / "integers", lambda tensors: tensors.update(integers))
    with pytest.raises(UnsupportedError, match=f"tensor '{name}' is I8, wanted one of F32, F16, BF16"):
        build(checkpoint, tmp_path)


def test_norms_may_have_another_dtype(originals, tmp_path):
    def halve_linears(tensors):
        for name in [name for name, tensor in tensors.items() if tensor.ndim == 2]:
            tensors[name] = tensors[name].astype(np.float16)

    engine, _ = build(edited(originals, "llama", tmp_path / "x", halve_linears), tmp_path)
    written = plan.read(engine)
    assert written["network"]["dtype"] == written["weights"]["head.weight"]["dtype"] == "float16"
    assert written["weights"]["input_norm.0.weight"]["dtype"] == "float32"


def broken_file(directory, content):
    (directory / "model.safetensors").write_bytes(content)
    return directory


def test_broken_files(originals, tmp_path):
    directory = shutil.copytree(originals["llama"], tmp_path / "x")
    content = (directory / "model.safetensors").read_bytes()
    no_json = b"\x02" + b"\0" * 7 + b"[["
    cases = {content[:-1]: "truncated", content[:100]: "truncated", b"": "truncated", no_json: "cannot be read as safe"}
    for cut, text in cases.items():
        with pytest.raises(CheckpointError, match=text):
            Checkpoint.open(broken_file(directory, cut))
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: cannot be read as JSON"):
        Checkpoint.open(broken_file(directory, content))
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json"):
        Checkpoint.open(directory)


def test_index_that_lists_what_its_files_lack(tmp_path):
    checkpoint = make_llama(tmp_path / "llama", shards="20KB")
    index = checkpoint / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    file = document["weight_map"]["model.norm.weight"]
    document["weight_map"]["model.ghost"] = file
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=re.escape(f"its files lack: model.ghost ({file})")):
        Checkpoint.open(checkpoint)
    (checkpoint / file).unlink()
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("key, value", [("hidden_size", None), ("vocab_size", "101"), ("num_hidden_layers", 0)])
def test_wrong_config_values(originals, tmp_path, key, value):
    directory = shutil.copytree(originals["llama"], tmp_path / "x")
    config = json.loads((directory / "config.json").read_text()) | {key: value}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=re.escape(f"{key} is {value!r}, wanted a positive integer")):
        build(directory, tmp_path)
