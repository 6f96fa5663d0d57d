"""Beam search against transformers in float32, and its independence of everything but the request."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import oracle
from checkpoints import make_gpt2, make_llama
from inflight.executor import Beam, Executor, ExecutorError, Request

ENDLESS = 16000  # tokens of long_7m; takes a minute and more
EARLY_STOPPING = {0: False, 1: True, 2: "never"}


def reference(model, request: Request, processors=()) -> list[tuple[tuple[int, ...], float]]:
    """(tokens without the end id, score) of transformers' beams, best first."""
    ids = torch.tensor([request.input_ids])
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_tokens,
            do_sample=False,
            num_beams=request.beam_width,
            num_return_sequences=request.beam_width,
            length_penalty=request.length_penalty,
            early_stopping=EARLY_STOPPING[request.early_stopping],
            eos_token_id=request.end_id,
            pad_token_id=0,
            logits_processor=LogitsProcessorList(processors),
            return_dict_in_generate=True,
            output_scores=True,
        )
    beams = []
    for row, score in zip(output.sequences.tolist(), output.sequences_scores.tolist(), strict=True):
        tokens = row[len(request.input_ids) :]
        beams.append((tuple(tokens[: tokens.index(request.end_id)] if request.end_id in tokens else tokens), score))
    return beams


def assert_same_beams(beams: list[Beam], expected: list[tuple[tuple[int, ...], float]]) -> None:
    """Beams with scores as close as float32 sums may change places; a length penalty < 0 makes scores of hundreds."""
    assert np.allclose([beam.score for beam in beams], [score for _, score in expected], atol=1e-4, rtol=5e-6)
    assert sorted(tuple(beam.tokens) for beam in beams) == sorted(tokens for tokens, _ in expected)
    apart = [abs(a - b) > 1e-3 for (_, a), (_, b) in zip(expected, expected[1:], strict=False)]
    if all(apart):
        assert [tuple(beam.tokens) for beam in beams] == [tokens for tokens, _ in expected]


def search(executor: Executor, requests: list[Request]) -> list[list[Beam]]:
    handles = [executor.submit(request) for request in requests]
    return [list(handle)[-1].beams for handle in handles]


def requests_of_all_kinds(prompts: list[list[int]], end_ids: list[int], count: int) -> list[Request]:
    random = np.random.default_rng(17)
    return [
        Request(
            prompt,
            max_tokens=int(random.integers(1, count)),
            end_id=end_ids[i % len(end_ids)],
            beam_width=int(random.integers(2, 9)),
            length_penalty=(0.0, 1.0, -0.7, 2.0, 0.5)[i % 5],
            early_stopping=i % 3,
            min_tokens=0,
        )
        for i, prompt in enumerate(prompts)
    ]


def test_python_7m_beams_equal_transformers(python_7m, prompts, heldout_ids):
    common = np.bincount(heldout_ids).argsort()[::-1][:4].tolist()  # as end ids, they end many beams early
    requests = requests_of_all_kinds([prompt[:80] for prompt in prompts[:15]], [*common, 0], 20)
    with Executor(python_7m, max_beam_width=8) as executor:
        answers = search(executor, requests)
    model = oracle.load(python_7m)
    for request, beams in zip(requests, answers, strict=True):
        assert_same_beams(beams, reference(model, request))
    assert any(beam.finish_reason == "stop" for beams in answers for beam in beams)
    assert any(beam.finish_reason == "length" for beams in answers for beam in beams)


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_random_models_beams_equal_transformers(tmp_path, make):
    checkpoint = make(tmp_path / "checkpoint")
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 97, random.integers(1, 30)).tolist() for _ in range(24)]
    requests = requests_of_all_kinds(prompts, [3, 40, 77], 16)
    with Executor(checkpoint, max_beam_width=8) as executor:
        answers = search(executor, requests)
    model = oracle.load(checkpoint)
    for request, beams in zip(requests, answers, strict=True):
        assert_same_beams(beams, reference(model, request))


class Rules(LogitsProcessor):
    """What the sampler does to the logits before it takes their log softmax: transformers would do it after."""

    def __init__(self, model, request: Request):
        self.model, self.request = model, request

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = self.model(input_ids).logits[:, -1].clone()
        for row, tokens in zip(logits, input_ids.tolist(), strict=True):
            self.apply(row, tokens)
        return torch.log_softmax(logits / self.request.temperature, dim=-1)

    def apply(self, row: torch.Tensor, tokens: list[int]) -> None:
        request = self.request
        generated = tokens[len(request.input_ids) :]
        row += torch.tensor(request.embedding_bias)
        for token in set(tokens):
            row[token] *= request.repetition_penalty if row[token] <= 0 else 1 / request.repetition_penalty
        counted = tokens[min(request.prompt_ignore_length, len(request.input_ids)) :]
        for token in set(counted):
            row[token] -= request.presence_penalty + request.frequency_penalty * counted.count(token)
        for *head, last in request.bad_words:
            if not head or tokens[-len(head) :] == head:
                row[last] = -torch.inf
        if len(generated) < request.min_tokens:
            row[request.end_id] = -torch.inf


@pytest.mark.parametrize("ignored", [0, 5, 99])
def test_penalties_bans_and_bias_shape_the_beams(tmp_path, ignored):
    checkpoint = make_llama(tmp_path / "llama")
    model = oracle.load(checkpoint)
    random = np.random.default_rng(6)
    rules = dict(
        temperature=0.7,
        repetition_penalty=1.3,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        prompt_ignore_length=ignored,
        bad_words=[[4], [8, 9], [11]],
        min_tokens=4,
        embedding_bias=(random.normal(size=101) * 0.3).astype(np.float32).tolist(),
    )
    requests = requests_of_all_kinds([random.integers(0, 101, 12).tolist() for _ in range(12)], [3, 40], 14)
    requests = [dataclasses.replace(request, **rules) for request in requests]
    with Executor(checkpoint, max_beam_width=8) as executor:
        answers = search(executor, requests)
    for request, beams in zip(requests, answers, strict=True):
        assert_same_beams(beams, reference(model, request, [Rules(model, request)]))


def test_log_probs_and_logits_belong_to_their_beams(python_7m, prompts):
    request = Request(
        prompts[3], max_tokens=12, beam_width=4, length_penalty=1.0, log_probs=True, generation_logits=True
    )
    model = oracle.load(python_7m)
    with Executor(python_7m, max_beam_width=4) as executor:
        (beams,) = search(executor, [dataclasses.replace(request, context_logits=True)])
        (result,) = executor.submit(dataclasses.replace(request, context_logits=True))
    assert len(beams) == 4
    assert np.abs(result.context_logits - oracle.logits(model, prompts[3]).numpy()).max() < 1e-4
    for beam in beams:
        rows = oracle.logits(model, prompts[3] + beam.tokens)[len(prompts[3]) - 1 : -1]
        expected = torch.log_softmax(rows, -1)[range(12), beam.tokens].numpy()
        assert np.abs(np.array(beam.log_probs) - expected).max() < 1e-4
        assert np.abs(beam.generation_logits - rows.numpy()).max() < 1e-3
        assert abs(beam.cum_log_prob - expected.sum()) < 1e-3
        assert abs(beam.score - beam.cum_log_prob / 12) < 1e-5


def test_stop_words_end_a_beam_and_are_part_of_it(python_7m, prompts):
    free = Request(prompts[3], max_tokens=20, beam_width=3)
    with Executor(python_7m, max_beam_width=3) as executor:
        (beams,) = search(executor, [free])
        word = beams[0].tokens[4:6]
        (stopped,) = search(executor, [dataclasses.replace(free, stop_words=[word])])
    ended = [beam for beam in stopped if beam.finish_reason == "stop"]
    assert ended
    assert all(beam.tokens[-2:] == word for beam in ended)
    assert all(word != beam.tokens[i : i + 2] for beam in stopped for i in range(len(beam.tokens) - 2))


def test_streaming_sends_whole_beams(python_7m, prompts):
    request = Request(prompts[3], max_tokens=15, beam_width=3, streaming=True, log_probs=True)
    with Executor(python_7m, max_beam_width=3) as executor:
        results = list(executor.submit(request))
        (whole,) = executor.submit(dataclasses.replace(request, streaming=False))
        (with_input,) = executor.submit(dataclasses.replace(request, streaming=False, exclude_input=False))
    assert len(results) == 15
    for length, result in enumerate(results[:-1], 1):
        assert [len(beam.tokens) for beam in result.beams] == [length] * 3
        assert [len(beam.log_probs) for beam in result.beams] == [length] * 3
        assert result.finish_reason == "" and not result.final
    assert results[-1].beams[0].tokens == results[-1].tokens
    as_tuples = [[dataclasses.replace(beam, generation_logits=None) for beam in r.beams] for r in (results[-1], whole)]
    assert as_tuples[0] == as_tuples[1]
    assert [beam.tokens for beam in with_input.beams] == [prompts[3] + beam.tokens for beam in whole.beams]


INVALID = {
    "too wide": (dict(beam_width=5), "beam_width is 5, wanted 1 to max_beam_width 4"),
    "not wide": (dict(beam_width=0), "beam_width is 0, wanted 1 to max_beam_width 4"),
    "sequences": (dict(beam_width=2, num_return_sequences=3), "num_return_sequences is 3 with beam_width 2"),
    "early stopping": (dict(beam_width=2, early_stopping=3), "early_stopping is 3, wanted 0 to 2"),
    "length penalty": (dict(beam_width=2, length_penalty=float("nan")), "length_penalty is nan"),
    "diversity": (dict(beam_search_diversity_rate=float("inf")), "beam_search_diversity_rate is inf"),
    "decay": (dict(top_p=0.9, top_p_decay=0.0), "top_p_decay is 0"),
    "least top_p": (dict(top_p=0.9, top_p_min=1.5), "top_p_min is 1.5"),
}


def test_invalid_beams_are_refused_with_both_numbers(python_7m):
    with Executor(python_7m, max_beam_width=4, kv_cache_max_tokens=96, kv_cache_block_size=32) as executor:
        for changes, text in INVALID.values():
            with pytest.raises(ExecutorError, match=text) as caught:
                executor.submit(Request([1, 2], max_tokens=4, **changes))
            assert caught.value.code == "invalid_argument"
        with pytest.raises(ExecutorError, match="of each beam need 4 KV blocks of 32 tokens, the pool has 3"):
            executor.submit(Request([1, 2], max_tokens=30, beam_width=4))
    with pytest.raises(ExecutorError, match="max_beam_width is 9, wanted 1 to 8"):
        Executor(python_7m, max_beam_width=9, max_batch_size=8)


def mixed(prompts: list[list[int]], **changes) -> list[Request]:
    """Widths of 1 to 6 side by side."""
    return [
        Request(
            prompt, max_tokens=16, beam_width=1 + i % 6, length_penalty=0.5, repetition_penalty=1.1, log_probs=True,
            end_id=0, **changes,
        )
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip


def bits(result) -> list[tuple[list[int], float]]:
    return [(result.tokens, result.cum_log_prob), *((beam.tokens, beam.score) for beam in result.beams)]


def run(checkpoint, requests: list[Request], together: bool = True, **config):
    with Executor(checkpoint, max_beam_width=6, **config) as executor:
        if together:
            results = [list(handle)[-1] for handle in [executor.submit(request) for request in requests]]
        else:
            results = [list(executor.submit(request))[-1] for request in requests]
        return [bits(result) for result in results], executor.stats()


@pytest.fixture(scope="module")
def alone(python_7m, prompts):
    return run(python_7m, mixed(prompts[:18]), together=False, kv_cache_enable_block_reuse=False)[0]


WAYS = {
    "in company": dict(),
    "chunked": dict(max_num_tokens=16, max_batch_size=16),
    "small blocks": dict(kv_cache_block_size=2),
    "planned ahead": dict(plan_ahead=True),
    "two stages": dict(pipeline_parallel=2),
    "one thread": dict(num_threads=1),
}


@pytest.mark.parametrize("way", WAYS)
def test_beams_do_not_depend_on(python_7m, prompts, alone, way):
    assert run(python_7m, mixed(prompts[:18]), **WAYS[way])[0] == alone


@pytest.mark.parametrize("reuse", [False, True])
def test_beams_after_pauses(python_7m, prompts, alone, reuse):
    config = dict(kv_cache_max_tokens=512, kv_cache_block_size=8, capacity_policy="max_utilization")
    answers, stats = run(python_7m, mixed(prompts[:18]), kv_cache_enable_block_reuse=reuse, max_batch_size=24, **config)
    assert stats["preemptions"] > 0
    assert answers == alone


def test_beams_after_prefix_reuse(python_7m, prompts, alone):
    answers, stats = run(python_7m, mixed(prompts[:18]) * 2)
    assert stats["tokens_reused"] > 1000
    assert stats["kv_blocks_used"] == 0
    assert answers == alone * 2


def test_cancelled_and_late_beams_give_their_blocks_back(long_7m, prompts):
    requests = mixed(prompts[:18], timeout_seconds=0.05)
    with Executor(long_7m, max_beam_width=6) as executor:
        endless = [dataclasses.replace(r, max_tokens=ENDLESS, end_id=None, early_stopping=2) for r in requests]
        late = [executor.submit(request) for request in endless]
        gone = [executor.submit(dataclasses.replace(request, timeout_seconds=0)) for request in endless]
        for handle in gone:
            handle.cancel()
        for handle in gone:
            with pytest.raises(ExecutorError, match="cancelled"):
                list(handle)
        results = [list(handle)[-1] for handle in late]
        assert {result.finish_reason for result in results} == {"timeout"}
        assert all(1 <= len(result.beams) <= 6 for result in results if result.beams)
        assert executor.stats()["kv_blocks_used"] == 0


def test_higher_priority_beams_go_first(long_7m, prompts):
    with Executor(long_7m, max_beam_width=4, max_batch_size=4) as executor:
        blocker = executor.submit(Request(prompts[0], max_tokens=ENDLESS, beam_width=4))
        fields = dict(max_tokens=8, beam_width=4, perf_metrics=True)
        handles = [executor.submit(Request(prompts[1], priority=priority, **fields)) for priority in (0.1, 0.9)]
        blocker.cancel()
        (low,), (high,) = handles
    assert high.perf.last_token_time_ns < low.perf.first_token_time_ns


def top_p_by_step(request: Request, tokens: list[int]) -> list[float]:
    values = [request.top_p]
    for token in tokens:
        reset = token == request.top_p_reset_id
        values.append(request.top_p if reset else max(request.top_p_min, values[-1] * request.top_p_decay))
    return values[: len(tokens)]


@pytest.mark.parametrize("plan_ahead", [False, True])
def test_top_p_decays_and_is_reset(python_7m, prompts, plan_ahead):
    """Every drawn token lies in the nucleus of its own step's top-p, which a request without decay leaves."""
    request = Request(
        prompts[3], max_tokens=60, top_p=0.95, temperature=1.5, seed=4, top_p_decay=0.7, top_p_min=0.05,
        generation_logits=True, streaming=True,
    )  # fmt: skip
    with Executor(python_7m, plan_ahead=plan_ahead) as executor:
        free = executor.generate(dataclasses.replace(request, top_p_decay=1.0, generation_logits=False))
        reset = dataclasses.replace(request, top_p_reset_id=free[0])
        results = list(executor.submit(reset))
        unlike = executor.generate(dataclasses.replace(reset, generation_logits=False, top_p_reset_id=-1))
    tokens = [token for result in results for token in result.tokens]
    rows = np.concatenate([result.generation_logits for result in results])
    allowed = top_p_by_step(reset, tokens)
    assert tokens[0] == free[0] and max(allowed[1:]) == 0.95 and min(allowed) == 0.05
    for row, token, top_p in zip(rows, tokens, allowed, strict=True):
        p = torch.softmax(torch.from_numpy(row) / 1.5, -1).numpy()
        assert p[p > p[token]].sum() < top_p + 1e-4, "outside the nucleus"
    assert unlike != tokens
