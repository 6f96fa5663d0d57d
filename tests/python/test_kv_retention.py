"""Which KV blocks are kept when the pool is too small for all: a request's say."""

import time

import pytest

from inflight.executor import Executor, ExecutorError, Request, Retention, RetentionRange

BLOCK = 16
POOL = {"kv_cache_max_tokens": 12 * BLOCK, "kv_cache_block_size": BLOCK}


def prompts_of(heldout_ids: list[int]) -> list[list[int]]:
    """Of five blocks each, with nothing in common."""
    return [[4090 - start, *heldout_ids[400 * start : 400 * start + 5 * BLOCK]] for start in range(4)]


def reused_tokens(executor: Executor, prompt: list[int], **fields) -> int:
    """Of the prompt's tokens that the cache had."""
    before = executor.stats()["tokens_reused"]
    executor.generate(Request(prompt, max_tokens=2, **fields))
    return executor.stats()["tokens_reused"] - before


def test_kept_prompt_outlives_younger_ones(python_7m, heldout_ids):
    kept, *others = prompts_of(heldout_ids)
    with Executor(python_7m, **POOL) as executor:
        answer = executor.generate(Request(kept, max_tokens=2, retention_ranges=[RetentionRange(0, priority=90)]))
        for prompt in others:
            assert reused_tokens(executor, prompt) == 0
        assert reused_tokens(executor, kept) == len(kept) - 1
        assert executor.generate(Request(kept, max_tokens=2)) == answer
        assert reused_tokens(executor, others[0]) == 0


def test_without_a_word_the_oldest_goes(python_7m, heldout_ids):
    oldest, *others = prompts_of(heldout_ids)
    with Executor(python_7m, **POOL) as executor:
        for prompt in (oldest, *others):
            assert reused_tokens(executor, prompt) == 0
        assert reused_tokens(executor, oldest) == 0


def test_priority_ends_with_its_duration(python_7m, heldout_ids):
    kept, *others = prompts_of(heldout_ids)
    ranges = [RetentionRange(0, None, priority=90, duration_ms=1)]
    with Executor(python_7m, **POOL) as executor:
        executor.generate(Request(kept, max_tokens=2, retention_ranges=ranges))
        time.sleep(0.01)
        for prompt in others:
            executor.generate(Request(prompt, max_tokens=2))
        assert reused_tokens(executor, kept) == 0


@pytest.mark.parametrize(
    ("ranges", "decode", "text"),
    [
        ([{"begin": -1}], {}, "retention range 0 starts at -1, wanted at least 0"),
        ([{"begin": 0}, {"begin": 3, "end": 3}], {}, "retention range 1 ends at 3, wanted more"),
        ([{"begin": 0, "priority": 101}], {}, "retention range 0: priority is 101, wanted 0 to 100"),
        ([], {"priority": -1}, "retention of generated tokens: priority is -1, wanted 0 to 100"),
        ([], {"duration_ms": -5}, "duration is -5 ms, wanted at least 0"),
    ],
)
def test_values_that_mean_nothing_are_refused(python_7m, ranges, decode, text):
    request = Request(
        [1, 2, 3],
        retention_ranges=[RetentionRange(**fields) for fields in ranges],
        retention_decode=Retention(**decode),
    )
    with Executor(python_7m, **POOL) as executor, pytest.raises(ExecutorError, match=text) as caught:
        executor.submit(request)
    assert caught.value.code == "invalid_argument"
