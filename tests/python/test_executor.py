"""The executor's own behaviour: streaming, ends, cancellation, queue, errors, outputs."""

import asyncio
import dataclasses
import time

import numpy as np
import pytest
import torch

from checkpoints import make_llama
from inflight import plan
from inflight.executor import Executor, ExecutorError, Request

PROMPT = [311, 84, 15, 343, 9]
ENDLESS = 16000  # tokens of long_7m; takes a minute, so it is cancelled


@pytest.fixture(scope="module")
def executor(python_7m):
    with Executor(python_7m) as shared:
        yield shared


@pytest.fixture(scope="module")
def answer(executor) -> list[int]:
    return executor.generate(Request(PROMPT, max_tokens=40))


def refused(executor: Executor, request: Request) -> ExecutorError:
    with pytest.raises(ExecutorError) as caught:
        executor.submit(request)
    return caught.value


def test_streaming_gives_the_same_tokens_in_pieces(executor, answer):
    results = list(executor.submit(Request(PROMPT, max_tokens=40, streaming=True)))
    assert [token for result in results for token in result.tokens] == answer
    assert len(results) == 40
    assert [result.final for result in results] == [False] * 39 + [True]
    assert results[-1].finish_reason == "length"


def test_prefix_tokens_are_those_before_the_piece(executor, answer):
    results = list(executor.submit(Request(PROMPT, max_tokens=40, streaming=True, prefix_tokens=3)))
    seen: list[int] = []
    for result in results:
        assert result.prefix_tokens == seen[-3:]
        seen += result.tokens


def test_async_iteration_of_many_requests(executor, answer):
    async def ask() -> list[int]:
        return [
            t async for result in executor.submit(Request(PROMPT, max_tokens=40, streaming=True)) for t in result.tokens
        ]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(ask() for _ in range(8)))

    assert asyncio.run(main()) == [answer] * 8


def test_input_is_repeated_when_not_excluded(executor, answer):
    assert executor.generate(Request(PROMPT, max_tokens=40, exclude_input=False)) == PROMPT + answer


def test_end_id_ends_and_is_no_part_of_the_answer(executor, answer):
    end = answer[7]
    (result,) = executor.submit(Request(PROMPT, max_tokens=40, end_id=end))
    assert result.tokens == answer[: answer.index(end)]
    assert result.finish_reason == "stop"


def test_min_tokens_bans_the_end(executor, answer):
    end = answer[3]
    tokens = executor.generate(Request(PROMPT, max_tokens=40, end_id=end, min_tokens=20))
    assert len(tokens) >= 20
    assert end not in tokens[:20]


def test_impossible_end_id_never_ends(executor, answer):
    for end_id in (-1, 5000):
        assert executor.generate(Request(PROMPT, max_tokens=40, end_id=end_id)) == answer


def test_every_end_id_of_the_checkpoint_ends(python_7m, tmp_path, answer):
    document = plan.read(plan.ensure(python_7m))
    document["network"]["eos_ids"] = [4095, answer[6]]
    plan.write(document, tmp_path)
    with Executor(tmp_path) as executor:
        assert executor.generate(Request(PROMPT, max_tokens=40, end_id=4095)) == answer[: answer.index(answer[6])]
        assert executor.generate(Request(PROMPT, max_tokens=40, end_id=4094)) == answer


def test_first_token_may_be_a_stop_word(executor, answer):
    (result,) = executor.submit(Request(PROMPT, max_tokens=40, stop_words=[answer[:1]]))
    assert result.tokens == answer[:1]
    tokens = executor.generate(Request(PROMPT, max_tokens=40, stop_words=[answer[:1]], min_tokens=2))
    assert tokens[0] != answer[0]


def test_stop_words_of_several_tokens(executor, answer):
    word = answer[10:13]
    (result,) = executor.submit(Request(PROMPT, max_tokens=40, stop_words=[[4095, 4094], word]))
    assert result.tokens == answer[:13]
    assert result.finish_reason == "stop"


def test_bad_words_never_come(executor, answer):
    bad = [[answer[0]], answer[10:12]]
    tokens = executor.generate(Request(PROMPT, max_tokens=40, bad_words=bad))
    assert answer[0] not in tokens
    assert answer[10:12] not in [tokens[i : i + 2] for i in range(len(tokens))]


def test_embedding_bias_forces_a_token(executor):
    bias = [0.0] * 4096
    bias[1234] = 1e4
    assert executor.generate(Request(PROMPT, max_tokens=5, embedding_bias=bias)) == [1234] * 5


def test_no_repeat_ngram(executor):
    tokens = PROMPT + executor.generate(Request(PROMPT, max_tokens=100, no_repeat_ngram_size=2))
    pairs = list(zip(tokens, tokens[1:], strict=False))
    assert len(pairs) == len(set(pairs))


def test_seeds_repeat_and_differ(executor):
    def sample(seed: int) -> list[int]:
        return executor.generate(Request(PROMPT, max_tokens=20, top_p=0.95, temperature=1.2, seed=seed))

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(10)}) > 5


def test_nothing_given_and_temperature_zero_are_greedy(executor, answer):
    assert executor.generate(Request(PROMPT, max_tokens=40, temperature=0.0, top_p=1.0)) == answer
    assert executor.generate(Request(PROMPT, max_tokens=40, top_k=1, temperature=2.0)) == answer


@pytest.mark.parametrize("reuse", [True, False])
def test_return_sequences_are_the_samples_of_one_prompt(python_7m, heldout_ids, reuse):
    prompt = heldout_ids[:100]
    request = Request(prompt, max_tokens=12, num_return_sequences=4, top_k=40, seed=3, streaming=True)
    sequences: dict[int, list[int]] = {}
    with Executor(python_7m, kv_cache_enable_block_reuse=reuse) as executor:
        results = list(executor.submit(request))
        stats = executor.stats()
    for result in results:
        sequences.setdefault(result.sequence_index, []).extend(result.tokens)
    assert sorted(sequences) == [0, 1, 2, 3]
    assert all(len(tokens) == 12 for tokens in sequences.values())
    assert len({tuple(tokens) for tokens in sequences.values()}) > 1
    assert stats["tokens_reused"] == (3 * 96 if reuse else 0)


def test_log_probs_are_the_models(executor, python_7m, answer):
    import oracle

    (result,) = executor.submit(Request(PROMPT, max_tokens=40, log_probs=True, repetition_penalty=1.3, top_k=5))
    rows = oracle.logits(oracle.load(python_7m), PROMPT + result.tokens)[len(PROMPT) - 1 : -1].log_softmax(-1)
    expected = rows.gather(1, torch.tensor(result.tokens)[:, None])[:, 0].numpy()
    assert np.abs(np.array(result.log_probs) - expected).max() < 1e-4
    assert result.cum_log_prob == pytest.approx(expected.sum(), abs=1e-3)


def test_generation_logits_lead_to_the_tokens(executor, answer):
    (result,) = executor.submit(Request(PROMPT, max_tokens=40, generation_logits=True))
    assert result.generation_logits.argmax(-1).tolist() == answer


def test_context_logits_survive_chunks_and_generation(python_7m, heldout_ids):
    prompt = heldout_ids[:50]

    def rows(**config) -> np.ndarray:
        with Executor(python_7m, **config) as executor:
            (result,) = executor.submit(Request(prompt, max_tokens=3, context_logits=True))
            return result.context_logits

    assert rows().shape == (50, 4096)
    assert np.array_equal(rows(), rows(max_num_tokens=7, max_batch_size=4))


def test_perf_metrics_count_blocks_as_the_contract_does(python_7m, heldout_ids):
    prompt = heldout_ids[:110]
    with Executor(python_7m, kv_cache_block_size=32) as executor:
        first, second = (
            list(executor.submit(Request(prompt, max_tokens=4, perf_metrics=True)))[0].perf for _ in range(2)
        )
    counts = lambda perf: (perf.kv_alloc_new_blocks, perf.kv_alloc_total_blocks, perf.kv_reused_blocks)  # noqa: E731
    assert counts(first) == (4, 4, 0)
    assert counts(second) == (1, 1, 4)
    assert (
        first.arrival_time_ns <= first.first_scheduled_time_ns <= first.first_token_time_ns < first.last_token_time_ns
    )


def test_marked_outputs_are_what_the_network_computes(tmp_path):
    """What is returned for a marked tensor is what the network computes there, for every layer and token."""
    checkpoint = make_llama(tmp_path / "llama", num_hidden_layers=3)
    document = plan.read(plan.ensure(checkpoint))
    entry, leaving = document["blocks"]["layers"]["carry"][0]
    document["outputs"] = [{"name": "hidden", "tensor": leaving, "block": "layers"}]
    (tmp_path / "engine").mkdir()
    plan.write(document, tmp_path / "engine")

    prompt = list(range(3, 20))
    with Executor(tmp_path / "engine", max_num_tokens=5, max_batch_size=2) as executor:
        (result,) = executor.submit(Request(prompt, max_tokens=1, additional_outputs=["hidden"]))
        assert refused(executor, Request(prompt, additional_outputs=["query"])).code == "invalid_argument"
    import oracle

    with torch.no_grad():
        states = oracle.load(checkpoint).model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    assert sorted(result.additional_outputs) == [f"hidden.layer{i}" for i in range(3)]
    for layer in range(2):  # transformers norms the last one
        ours = result.additional_outputs[f"hidden.layer{layer}"]
        assert np.abs(ours - states[layer + 1][0].numpy()).max() < 1e-4


def test_marked_outputs_have_a_row_for_each_computed_token(python_7m, tmp_path, answer):
    """After an end id one more token has been computed than was returned; after pauses none is there twice."""
    document = plan.read(plan.ensure(python_7m))
    leaving = document["blocks"]["layers"]["carry"][0][1]
    document["outputs"] = [{"name": "hidden", "tensor": leaving, "block": "layers"}]
    plan.write(document, tmp_path)
    asked = dict(max_tokens=40, additional_outputs=["hidden"])
    with Executor(tmp_path) as executor:
        (ended,) = executor.submit(Request(PROMPT, end_id=answer[7], **asked))
        (whole,) = executor.submit(Request(PROMPT, **asked))
    computed = len(PROMPT) + answer.index(answer[7])
    assert ended.additional_outputs["hidden.layer0"].shape == (computed, 256)
    assert whole.additional_outputs["hidden.layer7"].shape == (len(PROMPT) + 39, 256)
    scarce = dict(kv_cache_max_tokens=128, kv_cache_block_size=8, capacity_policy="max_utilization")
    with Executor(tmp_path, **scarce) as executor:
        results = [list(handle)[-1] for handle in [executor.submit(Request(PROMPT, **asked)) for _ in range(6)]]
        assert executor.stats()["preemptions"] > 0
    for result in results:
        assert np.array_equal(result.additional_outputs["hidden.layer7"], whole.additional_outputs["hidden.layer7"])


def test_cancel_ends_at_once_and_frees_the_blocks(long_7m):
    with Executor(long_7m, max_batch_size=2) as executor:
        running = executor.submit(Request(PROMPT, max_tokens=ENDLESS, streaming=True))
        stream = iter(running)
        next(stream)
        others = [executor.submit(Request(PROMPT, max_tokens=ENDLESS)) for _ in range(3)]  # running and waiting ones
        for handle in (running, *others):
            handle.cancel()
        with pytest.raises(ExecutorError) as caught:
            list(stream)
        assert caught.value.code == "cancelled"
        for handle in others:
            with pytest.raises(ExecutorError, match="cancelled"):
                handle.tokens()
        running.cancel()  # ended requests and unknown ids are ignored
        assert executor.generate(Request(PROMPT, max_tokens=5))
        stats = executor.stats()
        assert stats["requests_cancelled"] == 4
        assert stats["kv_blocks_used"] == 0
        assert stats["active_requests"] == 0


def test_timeout_ends_with_what_is_there(long_7m):
    with Executor(long_7m, max_batch_size=1) as executor:
        for seconds in (0.15, 1, 5, 25):  # a busy machine may give no token in time
            running = executor.submit(Request(PROMPT, max_tokens=ENDLESS, timeout_seconds=seconds))
            waiting = executor.submit(Request(PROMPT, max_tokens=ENDLESS, timeout_seconds=seconds / 3))
            (late,) = waiting
            (result,) = running
            assert late.finish_reason == result.finish_reason == "timeout"
            assert late.tokens == []
            if result.tokens:
                break
        assert result.tokens == executor.generate(Request(PROMPT, max_tokens=len(result.tokens)))


@pytest.fixture
def busy(long_7m):
    """An executor for one request at a time and two that wait, and the endless one that it runs."""
    with Executor(long_7m, max_batch_size=1, max_queue_size=2) as executor:
        blocker = executor.submit(Request(PROMPT, max_tokens=ENDLESS))
        while executor.stats()["waiting_requests"]:
            time.sleep(0.001)
        yield executor, blocker


def test_full_queue_is_refused_and_nothing_is_lost(busy):
    executor, blocker = busy
    handles = [executor.submit(Request(PROMPT, max_tokens=2)) for _ in range(2)]
    error = refused(executor, Request(PROMPT, max_tokens=2))
    assert error.code == "unavailable"
    assert "Maximum queue size of 2" in str(error)
    blocker.cancel()
    assert [len(handle.tokens()) for handle in handles] == [2, 2]
    assert executor.generate(Request(PROMPT, max_tokens=2))


def test_higher_priority_goes_first(busy):
    executor, blocker = busy
    fields = dict(max_tokens=20, perf_metrics=True)
    handles = [executor.submit(Request(PROMPT, priority=priority, **fields)) for priority in (0.1, 0.9)]
    blocker.cancel()
    (low,), (high,) = handles
    assert high.perf.last_token_time_ns < low.perf.first_token_time_ns


INVALID = {
    "empty prompt": (dict(input_ids=[]), "0 tokens"),
    "prompt too long": (dict(input_ids=[5] * 1024), "1024 tokens; this model takes at most 1023"),
    "unknown token": (dict(input_ids=[4096]), "4096 is outside the vocabulary of 4096"),
    "negative token": (dict(input_ids=[-1]), "-1 is outside"),
    "no tokens wanted": (dict(max_tokens=0), "max_tokens is 0"),
    "temperature": (dict(temperature=-0.5), "temperature is -0.5"),
    "temperature NaN": (dict(temperature=float("nan")), "temperature is nan"),
    "top_p": (dict(top_p=1.5), "top_p is 1.5"),
    "repetition_penalty": (dict(repetition_penalty=0.0), "repetition_penalty is 0"),
    "stop word": (dict(stop_words=[[4096]]), "stop_words 4096"),
    "empty bad word": (dict(bad_words=[[]]), "empty word"),
    "bias size": (dict(embedding_bias=[0.0] * 7), "7 entries, the vocabulary 4096"),
    "type": (dict(max_tokens="many"), "max_tokens is 'many'"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_requests_are_refused_with_both_numbers(executor, case):
    changes, text = INVALID[case]
    error = refused(executor, dataclasses.replace(Request(PROMPT, max_tokens=4), **changes))
    assert error.code == "invalid_argument"
    assert text in str(error)


def test_beams_beyond_the_limit_are_refused(executor):
    error = refused(executor, Request(PROMPT, beam_width=2))
    assert error.code == "invalid_argument"
    assert "beam_width is 2, wanted 1 to max_beam_width 1" in str(error)


def test_request_larger_than_the_cache_is_refused(python_7m):
    with Executor(python_7m, kv_cache_max_tokens=64) as executor:
        error = refused(executor, Request(PROMPT, max_tokens=100))
        assert error.code == "invalid_argument"
        assert executor.generate(Request(PROMPT, max_tokens=50))


def test_logits_beyond_the_memory_for_them_are_refused(python_7m):
    with Executor(python_7m, max_logits_bytes=6 * 4096 * 4) as executor:
        executor.generate(Request(PROMPT, max_tokens=1, context_logits=True, generation_logits=True))
        error = refused(executor, Request(PROMPT, max_tokens=2, context_logits=True, generation_logits=True))
        assert "take 114688 bytes, wanted at most max_logits_bytes 98304" in str(error)


def test_max_tokens_is_cut_to_the_sequence_limit(python_7m):
    with Executor(python_7m, max_sequence_length=30) as executor:
        assert len(executor.generate(Request(PROMPT, max_tokens=1000))) == 25


CONFIGS = {
    "device": (dict(device="tpu"), "unsupported", "tpu"),
    "no such setting": (dict(max_batch=3), "invalid_argument", "max_batch"),
    "policy": (dict(capacity_policy="greedy"), "invalid_argument", "greedy"),
    "block size": (dict(kv_cache_block_size=33), "invalid_argument", "33"),
    "tensor parallel": (dict(tensor_parallel=3), "invalid_argument", "3 tensor-parallel ranks"),
    "pipeline parallel": (dict(pipeline_parallel=9), "invalid_argument", "9 pipeline stages"),
    "tokens below batch": (dict(max_num_tokens=8, max_batch_size=16), "invalid_argument", "max_batch_size 16"),
    "length": (dict(max_sequence_length=5000), "invalid_argument", "5000"),
    "cache": (dict(kv_cache_max_tokens=16), "invalid_argument", "16 tokens"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configurations_are_named(python_7m, case):
    config, code, text = CONFIGS[case]
    with pytest.raises(ExecutorError) as caught:
        Executor(python_7m, **config)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_closing_answers_what_is_in_flight(long_7m):
    executor = Executor(long_7m, max_batch_size=2)
    handles = [executor.submit(Request(PROMPT, max_tokens=ENDLESS)) for _ in range(5)]
    executor.close()
    for handle in handles:
        with pytest.raises(ExecutorError) as caught:
            handle.tokens()
        assert caught.value.code == "unavailable"
    with pytest.raises(ExecutorError, match="closed"):
        executor.stats()


def test_idle_executor_uses_no_processor_time(executor, answer):
    def used_in_a_second() -> float:
        before = time.process_time()
        time.sleep(1.0)
        return time.process_time() - before

    # A second in which this process's other threads do nothing either comes; one that polls or spins is never at rest.
    assert any(used_in_a_second() < 0.05 for _ in range(30))
