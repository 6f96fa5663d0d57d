"""inflight inspect prints the figures that follow from the checkpoint."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.numpy import load_file

import tiny_network
from checkpoints import make_gpt2
from inflight import plan
from inflight.inspect import _bytes, inspect, totals
from test_network import tiny_checkpoint

DEMO = Path(__file__).parents[1] / "demo_model" / "python-7m"


def printed(path) -> str:
    console = Console(width=200, file=io.StringIO())
    inspect(path, console)
    return console.file.getvalue()


def line_of(text: str, *parts: str) -> str:
    return next(line for line in text.splitlines() if all(part in line for part in parts))


def test_demo_model(tmp_path):
    text = printed(plan.build(DEMO, tmp_path))
    assert "llama" in line_of(text, "family")
    assert "4 heads, 2 KV heads of 64" in line_of(text, "attention")
    assert "7,344,384" in line_of(text, "parameters", "│ 7")
    assert "8.0 KiB (float32, CPU), 4.0 KiB (bfloat16, GPU)" in line_of(text, "KV cache per token")
    qkv = line_of(text, "layers.{layer}.attention.qkv.weight")
    assert "512 x 256" in qkv and "axis0" in qkv and "131,072" in qkv
    assert "layers (x 8)" in text and "marked outputs" not in text


def test_totals(tmp_path):
    checkpoint = make_gpt2(tmp_path / "gpt2", tie_word_embeddings=False)
    stored = load_file(checkpoint / "model.safetensors").values()
    found = totals(plan.read(plan.build(checkpoint, tmp_path / "engine")))
    assert found.parameters == sum(tensor.size for tensor in stored)
    assert found.weight_bytes == 4 * found.parameters
    assert found.kv_elements_per_token == 3 * 2 * 32


def test_marked_outputs_and_units(tmp_path):
    tiny_checkpoint(tmp_path / "tiny")
    text = printed(plan.build(tmp_path / "tiny", tmp_path / "engine", define=tiny_network.define))
    assert "layers (2 x unit of 2)" in text
    assert "2 heads, 1 KV heads of 8, window 3; 2 heads, 1 KV heads of 8" in text
    assert "layers" in line_of(text, "middle_3", "add")


@pytest.mark.parametrize("count, text", [(512, "512 B"), (1536, "1.5 KiB"), (2**41, "2,048.0 GiB")])
def test_bytes(count, text):
    assert _bytes(count) == text
