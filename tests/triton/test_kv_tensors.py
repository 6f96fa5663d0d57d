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
