"""The tensors and parameters of the KV cache on a server: what is kept, moved out, keyed and masked."""

import json

import numpy as np
import pytest

from inflight.executor import Executor, Request
from served import TEXT_MODELS, Served

BLOCK = 16


@pytest.fixture(scope="module")
def small(start):
    """A pool of twelve blocks."""
    with start(kv_cache_block_size=BLOCK, max_tokens_in_paged_kv_cache=12 * BLOCK) as served:
        yield served


def hidden_size(checkpoint) -> int:
    return json.loads((checkpoint / "config.json").read_text())["hidden_size"]


def reused_blocks(served: Served, prompt: list[int], **inputs) -> int:
    (response,) = served.ask_tokens(prompt, 2, return_perf_metrics=True, **inputs)
    return int(response.outputs["kv_cache_reused_blocks"].item())


def test_kept_prompt_outlives_younger_ones(small, heldout_ids):
    kept, *others = [[4090 - i, *heldout_ids[400 * i : 400 * i + 5 * BLOCK]] for i in range(4)]
    keep = {
        "retention_token_range_starts": [0],
        "retention_token_range_ends": [-1],
        "retention_token_range_priorities": [90],
        "retention_token_range_durations_ms": [-1],
        "retention_decode_priority": 0,
    }
    assert reused_blocks(small, kept, **keep) == 0
    for prompt in others:
        assert reused_blocks(small, prompt) == 0
    assert reused_blocks(small, kept) == 5


def test_blocks_come_back_from_the_hosts_memory(start, heldout_ids):
    """Thirty blocks of prompts, a pool of twelve."""
    prompts = [[4090 - i, *heldout_ids[400 * i : 400 * i + 5 * BLOCK]] for i in range(6)]
    sizes = {"kv_cache_block_size": BLOCK, "max_tokens_in_paged_kv_cache": 12 * BLOCK}
    with start(**sizes, kv_cache_host_memory_bytes=16 << 20, stats_check_period_ms=20) as served:
        first = [served.ask_tokens(prompt, 6)[0].tokens for prompt in prompts]
        assert [served.ask_tokens(prompt, 6)[0].tokens for prompt in prompts] == first
        assert reused_blocks(served, prompts[0]) == 5
        served.wait_until_idle()
        assert served.sample('="max"', "kv_cache_block") == 12
        assert served.sample('memory_type="cpu"') > 16e6


def test_virtual_tokens(small, python_7m, heldout_ids):
    prompt = [4096, *heldout_ids[100:140], 4098]
    table = np.random.default_rng(2).normal(size=(3, hidden_size(python_7m))).astype(np.float16)
    with Executor(python_7m) as executor:
        expected = executor.generate(Request(prompt, max_tokens=8, prompt_embedding_table=table))
    extra_ids = [5, *[0] * 40, 5]
    tensors = {"prompt_embedding_table": table[None], "prompt_vocab_size": 3, "prompt_table_extra_ids": extra_ids}
    assert small.ask_tokens(prompt, 8, **tensors)[0].tokens[-8:] == expected
    assert reused_blocks(small, prompt, **tensors) == 3
    assert "input token 4098 is outside" in small.refusal(
        "tensorrt_llm",
        input_ids=prompt,
        input_lengths=len(prompt),
        request_output_len=2,
        **{**tensors, "prompt_vocab_size": 2},
    )


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_text_models_carry_the_table(shared_server, python_7m, model):
    """No word of the tokenizer is virtual here, so the table changes nothing but must arrive whole."""
    table = np.zeros((1, 2, hidden_size(python_7m)), np.float16)
    extra = {"prompt_vocab_size": 2, "prompt_table_extra_id": np.array([[9]], np.uint64)}
    with shared_server.stream(model, stream=False, prompt_embedding_table=table, **extra) as stream:
        texts = [response.text for response in stream]
    assert "".join(texts) == shared_server.text(model)
    text = shared_server.refusal(model, prompt_embedding_table=table[..., 1:], **extra)
    assert "wanted the network's hidden size" in text


def test_windows_and_sinks(start, python_7m, heldout_ids):
    prompt = heldout_ids[2000:2120]
    settings = {"kv_cache_attention_windows": [16, 64], "kv_cache_sink_tokens": 4}
    with Executor(python_7m, **settings) as executor:
        expected = executor.generate(Request(prompt, max_tokens=16))
    with Executor(python_7m) as executor:
        assert executor.generate(Request(prompt, max_tokens=16)) != expected
    with start(max_attention_window_size="16,64", sink_token_length=4) as served:
        assert served.ask_tokens(prompt, 16)[0].tokens == expected
