"""KV blocks that would be evicted move to the host's memory and come back: the same tokens, and nothing lost."""

import pytest

from inflight.executor import Executor, ExecutorError, Request

BLOCK = 16
DEVICE_BLOCKS = 12


def prompts_of(heldout_ids: list[int]) -> list[list[int]]:
    """Six prompts of five blocks each: 30 blocks for a pool of twelve."""
    return [[4090 - i, *heldout_ids[400 * i : 400 * i + 5 * BLOCK]] for i in range(6)]


def settings(host_blocks: int, block_bytes: int, **more) -> dict:
    return {
        "kv_cache_max_tokens": DEVICE_BLOCKS * BLOCK,
        "kv_cache_block_size": BLOCK,
        "kv_cache_host_memory_bytes": host_blocks * block_bytes,
        **more,
    }


@pytest.fixture(scope="module")
def block_bytes(python_7m) -> int:
    with Executor(python_7m, kv_cache_max_tokens=64) as executor:
        return executor.model.kv_bytes_per_token * BLOCK


def ask_all(executor: Executor, prompts: list[list[int]]) -> list[list[int]]:
    return [executor.generate(Request(prompt, max_tokens=6)) for prompt in prompts]


LAYOUTS = [
    {},
    {"plan_ahead": True},
    {"tensor_parallel": 2, "num_threads": 2},
    {"pipeline_parallel": 2, "num_threads": 2},
    {"capacity_policy": "max_utilization"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(layout) or "plain")
def test_working_set_larger_than_the_pool_is_reused(python_7m, heldout_ids, block_bytes, layout):
    prompts = prompts_of(heldout_ids)
    with Executor(python_7m) as executor:
        expected = ask_all(executor, prompts)
    with Executor(python_7m, **settings(40, block_bytes, **layout)) as executor:
        assert ask_all(executor, prompts) == expected
        before = executor.stats()
        assert ask_all(executor, prompts) == expected
        handles = [executor.submit(Request(prompt, max_tokens=6)) for prompt in prompts]  # all at once
        assert [handle.tokens() for handle in handles] == expected
        after = executor.stats()
    assert before["tokens_reused"] == 0
    assert after["tokens_reused"] == 2 * sum(len(prompt) - 1 for prompt in prompts)
    assert after["kv_blocks_onboarded"] > 0
    assert after["kv_host_blocks_max"] == 40
    assert after["kv_blocks_used"] == 0
    assert after["kv_blocks_free"] == DEVICE_BLOCKS


def test_without_a_host_pool_the_same_prompts_are_computed_anew(python_7m, heldout_ids, block_bytes):
    prompts = prompts_of(heldout_ids)
    with Executor(python_7m, **settings(0, block_bytes)) as executor:
        assert ask_all(executor, prompts) == ask_all(executor, prompts)
        assert executor.stats()["tokens_reused"] == 0


def test_blocks_that_may_not_come_back_are_computed_anew(python_7m, heldout_ids, block_bytes):
    prompts = prompts_of(heldout_ids)
    with Executor(python_7m, **settings(40, block_bytes, kv_cache_onboard_blocks=False)) as executor:
        assert ask_all(executor, prompts) == ask_all(executor, prompts)
        stats = executor.stats()
    assert stats["kv_blocks_offloaded"] > 0
    assert stats["kv_blocks_onboarded"] == stats["tokens_reused"] == 0


def test_memory_is_counted(python_7m, block_bytes):
    with (
        Executor(python_7m, **settings(0, block_bytes)) as plain,
        Executor(python_7m, **settings(40, block_bytes)) as executor,
    ):
        grown = executor.stats()["memory_cpu_bytes"] - plain.stats()["memory_cpu_bytes"]
    assert grown == 40 * block_bytes


@pytest.mark.parametrize(
    ("size", "text"), [(100, "host_memory_bytes is 100, less than one block of"), (-1, "is -1, wanted at least 0")]
)
def test_sizes_that_mean_nothing_are_refused(python_7m, size, text):
    with pytest.raises(ExecutorError, match=text):
        Executor(python_7m, kv_cache_host_memory_bytes=size)
