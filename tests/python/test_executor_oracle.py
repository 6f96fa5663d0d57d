"""The engine against transformers in float32: logits, greedy tokens and perplexity."""

import numpy as np
import pytest
import torch

import oracle
from checkpoints import LLAMA3_ROPE, make_gpt2, make_llama, random_tokens
from inflight.executor import Executor, Request


def engine_logits(executor: Executor, token_ids: list[int]) -> np.ndarray:
    """[tokens, vocabulary]"""
    (result,) = executor.submit(Request(token_ids, max_tokens=1, context_logits=True))
    return result.context_logits


def test_python_7m_greedy_tokens_equal_transformers(python_7m, prompts):
    model = oracle.load(python_7m)
    with Executor(python_7m) as executor:
        handles = [executor.submit(Request(prompt, max_tokens=48, end_id=0)) for prompt in prompts]
        answers = [handle.tokens() for handle in handles]
    for prompt, tokens in zip(prompts, answers, strict=True):
        oracle.assert_greedy(model, prompt, tokens, 48, end_id=0)
    for prompt, tokens in zip(prompts[:3], answers[:3], strict=True):
        assert tokens == oracle.generate(model, prompt, 48, end_id=0)


def test_python_7m_logits_equal_transformers(python_7m, heldout_ids):
    token_ids = heldout_ids[:700]
    expected = oracle.logits(oracle.load(python_7m), token_ids).numpy()
    with Executor(python_7m, max_num_tokens=256) as executor:  # several chunks
        assert np.abs(engine_logits(executor, token_ids) - expected).max() < 1e-4


def test_random_gpt2_greedy_tokens_equal_transformers(tmp_path):
    checkpoint = make_gpt2(tmp_path / "gpt2")
    model = oracle.load(checkpoint)
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 97, random.integers(1, 30)).tolist() for _ in range(64)]
    with Executor(checkpoint) as executor:
        handles = [executor.submit(Request(prompt, max_tokens=30)) for prompt in prompts]
        for prompt, handle in zip(prompts, handles, strict=True):
            oracle.assert_greedy(model, prompt, handle.tokens(), 30)


VARIANTS = {
    "llama-mha-untied": lambda path: make_llama(path, num_key_value_heads=4, tie_word_embeddings=False),
    "llama-gqa-tied-biases": lambda path: make_llama(
        path, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama3-rope": lambda path: make_llama(path, rope_parameters=LLAMA3_ROPE),
    "llama-wide-heads": lambda path: make_llama(path, head_dim=24),
    "llama-float16": lambda path: make_llama(path, dtype=torch.float16),
    "llama-sharded-bfloat16": lambda path: make_llama(path, dtype=torch.bfloat16, shards="20KB"),
    "gpt2-gelu": lambda path: make_gpt2(path, activation_function="gelu"),
    "gpt2-untied": lambda path: make_gpt2(path, tie_word_embeddings=False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_every_variant_equal_transformers(tmp_path, variant):
    checkpoint = VARIANTS[variant](tmp_path / "checkpoint")
    token_ids = random_tokens(97)
    expected = oracle.logits(oracle.load(checkpoint), token_ids).numpy()
    with Executor(checkpoint) as executor:
        assert np.abs(engine_logits(executor, token_ids) - expected).max() < 1e-4


def perplexity(rows: torch.Tensor, token_ids: list[int]) -> float:
    losses = torch.nn.functional.cross_entropy(rows[:-1].double(), torch.tensor(token_ids[1:]))
    return float(losses.exp())


def test_perplexity_of_heldout_text_equals_transformers(python_7m, heldout_ids):
    windows = [heldout_ids[start : start + 512] for start in range(0, len(heldout_ids) - 512, 512)]
    model = oracle.load(python_7m)
    with Executor(python_7m) as executor:
        for window in windows:
            ours = perplexity(torch.from_numpy(engine_logits(executor, window)), window)
            assert abs(ours - perplexity(oracle.logits(model, window), window)) < 1e-3
