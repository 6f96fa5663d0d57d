"""A request's tokens depend on nothing but the request: not on company, chunking, pauses, reuse, threads or ranks."""

import numpy as np
import pytest

from checkpoints import make_gpt2, make_llama
from inflight.executor import Executor, Request

TOKENS = 24
SAMPLED = dict(top_k=50, top_p=0.95, temperature=0.9, repetition_penalty=1.1)  # sees every bit of the logits


def run(checkpoint, prompts: list[list[int]], together: bool = False, **config) -> list[tuple[list[int], bytes]]:
    """Tokens and the bits of their logits, by prompt."""
    requests = [
        Request(prompt, max_tokens=TOKENS, generation_logits=True, seed=i, **SAMPLED)
        for i, prompt in enumerate(prompts)
    ]
    with Executor(checkpoint, **config) as executor:
        if together:
            results = [list(handle)[-1] for handle in [executor.submit(request) for request in requests]]
        else:
            results = [list(executor.submit(request))[-1] for request in requests]
    return [(result.tokens, result.generation_logits.tobytes()) for result in results]


@pytest.fixture(scope="module")
def alone(python_7m, prompts):
    return run(python_7m, prompts[:32], kv_cache_enable_block_reuse=False)


def test_alone_and_in_a_batch_of_32(python_7m, prompts, alone):
    assert run(python_7m, prompts[:32], together=True, max_batch_size=32) == alone


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_context_chunks_of_any_size(python_7m, prompts, alone, chunk):
    sizes = dict(max_num_tokens=chunk, max_batch_size=1)
    assert run(python_7m, prompts[:32], kv_cache_enable_block_reuse=False, **sizes) == alone


@pytest.mark.parametrize("reuse", [False, True])
def test_after_preemption(python_7m, prompts, alone, reuse):
    requests = [Request(p, max_tokens=TOKENS, seed=i, **SAMPLED) for i, p in enumerate(prompts[:32])]
    config = dict(kv_cache_max_tokens=512, kv_cache_block_size=8, capacity_policy="max_utilization")
    with Executor(python_7m, kv_cache_enable_block_reuse=reuse, max_batch_size=32, **config) as executor:
        tokens = [handle.tokens() for handle in [executor.submit(request) for request in requests]]
        assert executor.stats()["preemptions"] > 0
    assert tokens == [expected for expected, _ in alone]


def test_after_prefix_reuse(python_7m, prompts, alone):
    twice = prompts[:32] + prompts[:32]
    requests = [Request(p, max_tokens=TOKENS, seed=i % 32, **SAMPLED) for i, p in enumerate(twice)]
    with Executor(python_7m) as executor:
        tokens = [executor.submit(request).tokens() for request in requests]
        assert executor.stats()["tokens_reused"] > 1000
    assert tokens == [expected for expected, _ in alone] * 2


def test_on_one_and_two_threads(python_7m, prompts, alone):
    for threads in (1, 3):
        assert run(python_7m, prompts[:8], num_threads=threads, kv_cache_enable_block_reuse=False) == alone[:8]


RANKS = [(2, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize("tensor_parallel, pipeline_parallel", RANKS)
def test_ranks_give_the_tokens_of_one_rank(python_7m, prompts, tensor_parallel, pipeline_parallel):
    def greedy(**config) -> list[list[int]]:
        with Executor(python_7m, **config) as executor:
            handles = [executor.submit(Request(prompt, max_tokens=TOKENS)) for prompt in prompts[:32]]
            return [handle.tokens() for handle in handles]

    ranks = dict(tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    assert greedy(**ranks) == greedy()


@pytest.mark.parametrize("tensor_parallel, pipeline_parallel", [(4, 1), (3, 1), *RANKS])
def test_logits_of_ranks_are_close(tmp_path, tensor_parallel, pipeline_parallel):
    """Odd divisions: KV heads shared by ranks (4 ranks, 2 KV heads), a vocabulary of 97 over 2 ranks, biases."""
    if tensor_parallel == 3:
        checkpoint = make_gpt2(tmp_path / "gpt2", n_embd=36, n_head=6, n_layer=3)
    elif tensor_parallel == 4:
        checkpoint = make_llama(tmp_path / "llama", attention_bias=True, mlp_bias=True)
    else:
        checkpoint = make_gpt2(tmp_path / "gpt2")
    prompt = np.random.default_rng(1).integers(0, 97, 40).tolist()

    def logits(**config) -> np.ndarray:
        with Executor(checkpoint, **config) as executor:
            (result,) = executor.submit(Request(prompt, max_tokens=1, context_logits=True))
            return result.context_logits

    ranks = logits(tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    assert np.abs(ranks - logits()).max() < 1e-4
