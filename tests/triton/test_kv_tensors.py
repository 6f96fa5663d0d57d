"""The tensors and parameters of the KV cache on a server: what is kept, moved out, keyed and masked."""

import pytest

from served import Served

BLOCK = 16


@pytest.fixture(scope="module")
def small(start):
    """A pool of twelve blocks."""
    with start(kv_cache_block_size=BLOCK, max_tokens_in_paged_kv_cache=12 * BLOCK) as served:
        yield served


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
