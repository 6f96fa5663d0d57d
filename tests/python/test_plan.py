"""Plans compute what transformers computes, and are written, read, checked and cached as promised."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import inflight
from checkpoints import LLAMA3_ROPE, make_gpt2, make_llama, random_tokens, transformers_logits
from inflight import cli, plan
from inflight.errors import CheckpointError, PlanError, UnsupportedError
from plan_interpreter import Interpreter

ROOT = Path(__file__).parents[2]
DEMO_MODELS = ROOT / "tests" / "demo_model"

LLAMAS = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "multi_head": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide_heads": {"head_dim": 16},
    "llama3_rope": {"rope_parameters": LLAMA3_ROPE},
    "yarn_rope": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                      "original_max_position_embeddings": 32}},
    "linear_rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    "gelu": {"hidden_act": "gelu", "rms_norm_eps": 1e-2},
    "one_layer": {"num_hidden_layers": 1},
}  # fmt: skip
GPT2S = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "relu": {"activation_function": "relu", "n_inner": 40},
    "unscaled": {"scale_attn_weights": False},
}


def assert_same_logits(checkpoint: Path, engine_dir: Path, vocabulary: int):
    tokens = random_tokens(vocabulary)
    found, wanted = Interpreter(plan.build(checkpoint, engine_dir)).run(tokens), transformers_logits(checkpoint, tokens)
    assert found.shape == wanted.shape == (len(tokens), vocabulary)
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", LLAMAS.values(), ids=LLAMAS)
def test_llama_logits_equal_transformers(tmp_path, changes):
    assert_same_logits(make_llama(tmp_path / "llama", **changes), tmp_path / "engine", 101)


@pytest.mark.parametrize("changes", GPT2S.values(), ids=GPT2S)
def test_gpt2_logits_equal_transformers(tmp_path, changes):
    assert_same_logits(make_gpt2(tmp_path / "gpt2", **changes), tmp_path / "engine", 97)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints(tmp_path, dtype):
    checkpoint = make_llama(tmp_path / "llama", dtype)
    assert_same_logits(checkpoint, tmp_path / "engine", 101)
    written = plan.read(tmp_path / "engine")
    assert {weight["dtype"] for weight in written["weights"].values()} == {str(dtype).removeprefix("torch.")}
    assert written["network"]["dtype"] == str(dtype).removeprefix("torch.")


def test_demo_model(tmp_path):
    tokens = random_tokens(4096, 60)
    found = Interpreter(plan.build(DEMO_MODELS / "python-7m", tmp_path)).run(tokens)
    np.testing.assert_allclose(found, transformers_logits(DEMO_MODELS / "python-7m", tokens), atol=1e-4, rtol=0)


def test_sharded_checkpoint_and_rows(tmp_path):
    checkpoint = make_llama(tmp_path / "llama", shards="20KB")
    assert len(list(checkpoint.glob("*.safetensors"))) > 2
    engine = plan.build(checkpoint, tmp_path / "engine")
    tokens = random_tokens(101)
    found, wanted = Interpreter(engine).run(tokens, [3, 39]), transformers_logits(checkpoint, tokens)
    np.testing.assert_allclose(found, wanted[[3, 39]], atol=1e-4, rtol=0)


def test_network_facts(tmp_path):
    checkpoint = make_llama(tmp_path / "llama", eos_token_id=[2, 9], bos_token_id=1)
    network = plan.read(plan.build(checkpoint, tmp_path / "engine"))["network"]
    assert network["family"] == "llama"
    assert (network["vocabulary_size"], network["hidden_size"], network["num_layers"]) == (101, 32, 3)
    assert network["max_positions"] == 128
    assert (network["eos_ids"], network["bos_id"], network["pad_id"]) == ([2, 9], 1, None)


@pytest.mark.parametrize("make, changes", [(make_llama, {}), (make_llama, LLAMAS["tied"]), (make_gpt2, {})])
def test_num_parameters_equals_torch(tmp_path, make, changes):
    checkpoint = make(tmp_path / "checkpoint", **changes)
    from transformers import AutoModelForCausalLM

    wanted = AutoModelForCausalLM.from_pretrained(checkpoint).num_parameters()
    assert plan.read(plan.build(checkpoint, tmp_path / "engine"))["network"]["num_parameters"] == wanted


def test_eos_ids_of_generation_config_win(tmp_path):
    checkpoint = make_llama(tmp_path / "llama")
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert plan.read(plan.build(checkpoint, tmp_path / "engine"))["network"]["eos_ids"] == [7, 8]
    (checkpoint / "generation_config.json").unlink()
    assert plan.read(plan.build(checkpoint, tmp_path / "other"))["network"]["eos_ids"] == [2]


def test_build_copies_tokenizer_but_no_weights(tmp_path):
    plan.build(DEMO_MODELS / "python-1m", tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    copied = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names == {"plan.json", *copied}
    assert (tmp_path / "tokenizer.json").read_bytes() == (DEMO_MODELS / "python-1m" / "tokenizer.json").read_bytes()


def test_build_refuses_to_replace_unless_forced(tmp_path):
    plan.build(DEMO_MODELS / "python-1m", tmp_path)
    with pytest.raises(PlanError, match="exists already; give --force"):
        plan.build(DEMO_MODELS / "python-1m", tmp_path)
    plan.build(DEMO_MODELS / "python-1m", tmp_path, force=True)


def test_relative_plan_moves_with_its_checkpoint(tmp_path):
    make_llama(tmp_path / "a" / "llama")
    plan.build(tmp_path / "a" / "llama", tmp_path / "a" / "engine", relative=True)
    (tmp_path / "a").rename(tmp_path / "b")
    assert plan.read(tmp_path / "b" / "engine")["checkpoint"]["directory"] == "../llama"
    assert Interpreter(tmp_path / "b" / "engine").run([1, 2]).shape == (2, 101)


def test_plan_beside_the_weights(tmp_path):
    checkpoint = make_llama(tmp_path)
    config = (checkpoint / "config.json").read_bytes()
    plan.build(checkpoint, checkpoint)
    assert (checkpoint / "config.json").read_bytes() == config
    assert plan.ensure(checkpoint) == checkpoint


def test_ensure_builds_once_and_again_after_a_change(tmp_path):
    checkpoint, cache = make_llama(tmp_path / "llama"), tmp_path / "cache"
    first = plan.ensure(checkpoint, cache)
    stamp = (first / "plan.json").stat().st_mtime_ns
    assert first.parent == cache and first.name.startswith("llama-")
    assert plan.ensure(checkpoint, cache) == first and (first / "plan.json").stat().st_mtime_ns == stamp
    assert plan.ensure(first) == first
    config = json.loads((checkpoint / "config.json").read_text()) | {"rms_norm_eps": 0.5}
    (checkpoint / "config.json").write_text(json.dumps(config))
    second = plan.ensure(checkpoint, cache)
    assert second != first and list(cache.glob(".building-*")) == []
    os.utime(checkpoint / "model.safetensors", ns=(0, 0))
    assert plan.ensure(checkpoint, cache) not in (first, second)


def test_ensure_names_what_is_wrong(tmp_path):
    with pytest.raises(PlanError, match="not a folder"):
        plan.ensure(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        plan.ensure(tmp_path)


def corrupted(document: dict, change) -> dict:
    document = json.loads(json.dumps(document))
    change(document)
    return document


BAD_PLANS = {
    "format": (lambda p: p.update(format="other"), "inflight-plan"),
    "version": (lambda p: p.update(version=2), r"\$.version"),
    "unknown key": (lambda p: p.update(extra=1), "extra"),
    "unknown op": (lambda p: p["blocks"]["layers"]["ops"][0].update(op="conv"), r"layers, op 0 \(conv\): unknown op"),
    "operand": (lambda p: p["blocks"]["layers"]["ops"][0]["inputs"].update(y="logits_rows"), r"are \['x', 'y'\]"),
    "tensor": (lambda p: p["blocks"]["layers"]["ops"][0]["inputs"].update(x="nowhere"), "'nowhere' is not defined"),
    "twice": (lambda p: p["blocks"]["layers"]["ops"].insert(0, p["blocks"]["layers"]["ops"][0]), "assigned twice"),
    "weight": (lambda p: p["weights"].pop("layers.1.mlp.down.weight"), "'layers.1.mlp.down.weight' is not in"),
    "last norm": (lambda p: p["weights"].pop("input_norm.2.weight"), "'input_norm.2.weight' is not in"),
    "logits": (lambda p: p["blocks"]["epilogue"].pop(), "'logits' is not defined"),
    "carry": (lambda p: p["blocks"]["layers"]["carry"].append(["x", "add"]), "'x' is not defined"),
    "layers": (lambda p: p["blocks"]["layers"].update(repeat=7), "wanted 2 layers"),
    "kv_cache": (lambda p: p["kv_cache"][1].update(window=9), "kv_cache"),
    "residual": (lambda p: p["blocks"]["layers"]["ops"][-1]["outputs"].pop("residual"), "residual goes in and out"),
    "output": (lambda p: p["outputs"].append({"name": "o", "tensor": "t", "block": "layers"}), "output 'o'"),
}  # fmt: skip


@pytest.mark.parametrize("change, text", BAD_PLANS.values(), ids=BAD_PLANS)
def test_bad_plans_are_refused_by_name(tmp_path, change, text):
    document = plan.read(plan.build(DEMO_MODELS / "python-1m", tmp_path / "engine"))
    bad = corrupted(document, change)
    with pytest.raises(PlanError, match=text):
        plan.write(bad, tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(bad))
    with pytest.raises(PlanError, match=text):
        plan.read(tmp_path)


REFUSED = {
    "model_type": ({"model_type": "bert"}, "model_type 'bert' is not supported; supported: gpt2, llama"),
    "pretraining_tp": ({"pretraining_tp": 2}, "pretraining_tp = 2"),
    "activation": ({"hidden_act": "xielu"}, "hidden_act 'xielu'"),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
    "quantized": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
}


@pytest.mark.parametrize("changes, text", REFUSED.values(), ids=REFUSED)
def test_unsupported_configs_are_refused_by_name(tmp_path, changes, text):
    checkpoint = make_llama(tmp_path / "llama")
    config = json.loads((checkpoint / "config.json").read_text()) | changes
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=text):
        plan.build(checkpoint, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("key", ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"])
def test_gpt2_variants_are_refused_by_name(tmp_path, key):
    with pytest.raises(UnsupportedError, match=f"{key} = True"):
        plan.build(make_gpt2(tmp_path / "gpt2", **{key: True}), tmp_path / "engine")


def test_command_line(tmp_path, capsys):
    assert cli.main(["build", str(DEMO_MODELS / "python-1m"), "-o", str(tmp_path / "engine")]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "llama, 2 layers" in line and " s\n" in line
    assert cli.main(["build", str(DEMO_MODELS / "python-1m"), "-o", str(tmp_path / "engine")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_package_imports_without_torch_and_transformers(tmp_path):
    """In a fresh interpreter where importing either fails, a plan is built."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import inflight.cli, inflight.inspect, inflight.plan\n"
        f"inflight.plan.build({str(DEMO_MODELS / 'python-1m')!r}, {str(tmp_path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "tools")})
    assert plan.read(tmp_path)["network"]["num_layers"] == 2


def test_version_equals_pyproject():
    assert f'version = "{inflight.__version__}"' in (ROOT / "pyproject.toml").read_text()
