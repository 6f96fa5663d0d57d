"""The GPU engine in bfloat16 against transformers in float32, from the same bfloat16 checkpoints. `make test-gpu`."""

import numpy as np
import pytest
import torch

import oracle
from checkpoints import LLAMA3_ROPE, make_gpt2, make_llama, random_tokens
from inflight.executor import Executor, Request

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

MOST_ERROR = 2e-2  # of logits, relative: ||ours - theirs|| / ||theirs||
NEW_TOKENS = 48
WEIGHT_SCALE = 0.03  # under 1 / sqrt(hidden size), as in trained networks: larger ones amplify every rounding
SIZES = dict(
    vocab_size=1009, hidden_size=512, intermediate_size=1024, num_hidden_layers=6, max_position_embeddings=2048
)
GPT2_SIZES = dict(vocab_size=1009, n_embd=512, n_layer=6, n_head=8, n_positions=1024)

CHECKPOINTS = {
    "llama-gqa-128": dict(num_attention_heads=8, num_key_value_heads=2, head_dim=128),
    "llama-mha-64": dict(num_attention_heads=8, num_key_value_heads=8, head_dim=64),
    "llama-mqa-tied": dict(num_attention_heads=8, num_key_value_heads=1, head_dim=64, tie_word_embeddings=True),
    "llama3-rope-96": dict(num_attention_heads=4, num_key_value_heads=2, head_dim=96, rope_parameters=LLAMA3_ROPE),
    "llama-biases-80": dict(
        num_attention_heads=4, num_key_value_heads=4, head_dim=80, attention_bias=True, mlp_bias=True
    ),
    "llama-256": dict(num_attention_heads=4, num_key_value_heads=2, head_dim=256),
}


def make(directory, name):
    if name == "gpt2":
        return make_gpt2(directory, torch.bfloat16, scale=WEIGHT_SCALE, **GPT2_SIZES)
    return make_llama(directory, torch.bfloat16, scale=WEIGHT_SCALE, **SIZES, **CHECKPOINTS[name])


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def assert_follows(model, prompt: list[int], result) -> None:
    """Every token that transformers is surer of than the logits differ is transformers' token."""
    theirs = oracle.logits(model, prompt + result.tokens)[len(prompt) - 1 : -1].numpy()
    errors = np.abs(result.generation_logits - theirs).max(-1)
    second, first = np.sort(theirs, -1)[:, -2:].T
    sure = first - second > 2 * errors
    assert sure.mean() > 0.5  # or the comparison says little
    assert (np.array(result.tokens) == theirs.argmax(-1))[sure].all()


def assert_agrees(checkpoint, prompts: list[list[int]]) -> None:
    model = oracle.load(checkpoint)
    with Executor(checkpoint, device="cuda", max_num_tokens=512) as executor:
        for prompt in prompts[:4]:
            (result,) = executor.submit(Request(prompt, max_tokens=1, context_logits=True))
            assert relative_error(result.context_logits, oracle.logits(model, prompt).numpy()) < MOST_ERROR
        requests = [Request(prompt, NEW_TOKENS, generation_logits=True) for prompt in prompts]
        for prompt, handle in zip(prompts, [executor.submit(it) for it in requests], strict=True):
            (result,) = handle
            assert len(result.tokens) == NEW_TOKENS
            assert_follows(model, prompt, result)


@pytest.mark.parametrize("name", [*CHECKPOINTS, "gpt2"])
def test_random_checkpoint_agrees_with_transformers(tmp_path, name):
    tokens = random_tokens(1009, 1400)
    assert_agrees(make(tmp_path / name, name), [tokens[:700], tokens[700:740], tokens[3:4], tokens[50:115]])


def test_python_7m_agrees_with_transformers(python_7m, prompts, heldout_ids):
    assert_agrees(python_7m, [heldout_ids[:900], *prompts])
