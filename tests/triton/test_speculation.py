"""python-1m drafts for python-7m in the models with texts: the answers of python-7m alone, in fewer steps of it."""

import numpy as np
import pytest

from inflight import plan
from inflight.executor import Request
from served import ENDLESS, PROMPT

BLS = "tensorrt_llm_bls"
DRAFT = "tensorrt_llm_draft"


@pytest.fixture(scope="module")
def draft_settings(python_7m):
    return {"draft_engine_dir": plan.ensure(python_7m.parent / "python-1m"), "stats_check_period_ms": 20}


@pytest.fixture(scope="module")
def drafting(start, draft_settings):
    with start(**draft_settings) as served:
        yield served
        for model in ("tensorrt_llm", DRAFT):
            served.wait_until_idle(model)
        assert served.server.exit_code is None


@pytest.fixture(scope="module")
def texts(tokenizer, prompts):
    return [tokenizer.decode(prompt, True) for prompt in prompts[:8]]


def answered(served, model=BLS, **inputs):
    with served.stream(model, **{"stream": False, "max_tokens": 40, "num_draft_tokens": 4, **inputs}) as stream:
        responses = list(stream)
        assert stream.is_silent()
    assert responses[-1].error is None, responses[-1].error
    assert [response.final for response in responses] == [False] * (len(responses) - 1) + [True]
    return responses


@pytest.mark.parametrize("model", [BLS, "inflight_text"])
def test_text_is_the_target_alone(drafting, greedy_text, texts, model):
    for text in texts:
        (response,) = answered(drafting, model, text_input=text, return_perf_metrics=True)
        assert response.text == greedy_text(text, 40)
        assert response.outputs["total_draft_tokens"].item() > 0


@pytest.mark.parametrize("count", [1, 7, 100])
def test_any_number_of_drafts(drafting, greedy_text, count):
    (response,) = answered(drafting, num_draft_tokens=count)
    assert response.text == greedy_text(PROMPT, 40)


def test_rounds_save_steps_of_the_target(drafting, greedy_text):
    drafting.settle()
    before = drafting.sample("iteration_counter")
    (response,) = answered(drafting, max_tokens=200, ignore_eos=True, return_perf_metrics=True, end_id=-1)
    assert response.text == greedy_text(PROMPT, 200)
    drafting.settle()
    steps = drafting.sample("iteration_counter") - before
    drafted, accepted = (response.outputs[f"total_{it}draft_tokens"].item() for it in ("", "accepted_"))
    assert steps <= 200 - accepted + 2
    assert drafted > 100
    assert accepted > 0.2 * drafted
    assert response.outputs["acceptance_rate"].item() == pytest.approx(accepted / drafted)


def test_a_round_computes_only_what_is_new(drafting):
    prompt = PROMPT * 20
    (response,) = answered(drafting, text_input=prompt, return_perf_metrics=True, return_num_input_tokens=True)
    context = response.outputs["num_input_tokens"].item()
    assert context > 150
    (again,) = answered(drafting, text_input=prompt, return_perf_metrics=True)
    assert again.text == response.text
    assert again.outputs["kv_cache_reused_blocks"].item() >= context // 32


def test_both_models_show_the_rounds(drafting):
    """Neither is asked by a request of its own that would make its numbers be read again."""
    drafting.settle()
    before = {model: drafting.sample("iteration_counter", model=model) for model in ("tensorrt_llm", DRAFT)}
    (response,) = answered(drafting, return_perf_metrics=True, ignore_eos=True)
    rounds = 40 - response.outputs["total_accepted_draft_tokens"].item()
    drafted = response.outputs["total_draft_tokens"].item()
    drafting.shows(before["tensorrt_llm"] + rounds, "iteration_counter")
    drafting.shows(before[DRAFT] + drafted, "iteration_counter", model=DRAFT)


def test_streamed_rounds(drafting, greedy_text):
    responses = answered(drafting, stream=True, return_log_probs=True)
    assert "".join(response.text for response in responses) == greedy_text(PROMPT, 40)
    assert 8 <= len(responses) < 40


@pytest.mark.parametrize("use_draft_logits", [False, True])
def test_drawn_answers(drafting, executor, tokenizer, use_draft_logits):
    """Without draft logits they are those of the target alone; with them they repeat themselves."""
    options = {"top_k": 20, "temperature": 0.7, "seed": 9, "repetition_penalty": 1.1, "presence_penalty": 0.3}
    options["prompt_ignore_length"] = 4
    request = Request(tokenizer.encode(PROMPT, True), 40, end_id=tokenizer.end_id, **options)
    alone = tokenizer.decode(executor.generate(request), True)
    options["random_seed"] = options.pop("seed")
    found = [answered(drafting, use_draft_logits=use_draft_logits, **options)[0] for _ in range(2)]
    assert found[0].text == found[1].text
    assert use_draft_logits or found[0].text == alone


def test_stop_words(drafting, greedy_text):
    text = greedy_text(PROMPT, 60)
    for stream in (False, True):
        responses = answered(drafting, stop_words=[text[41:47]], max_tokens=400, ignore_eos=True, stream=stream)
        assert "".join(response.text for response in responses) == text[:47]
        assert responses[-1].outputs["finish_reason"].item() == b"stop"


def test_what_an_answer_carries(drafting, executor, tokenizer):
    ids = tokenizer.encode(PROMPT, True)
    (expected,) = executor.submit(Request(ids, 12, log_probs=True, generation_logits=True))
    flags = ("return_log_probs", "return_generation_logits", "return_num_output_tokens", "return_perf_metrics")
    (response,) = answered(drafting, max_tokens=12, exclude_input_in_output=False, **dict.fromkeys(flags, True))
    assert response.text == PROMPT + tokenizer.decode(expected.tokens, True)
    outputs = response.outputs
    np.testing.assert_allclose(outputs["output_log_probs"][0, 0], expected.log_probs, rtol=1e-5)
    assert outputs["cum_log_probs"].item() == pytest.approx(expected.cum_log_prob, rel=1e-5)
    np.testing.assert_allclose(outputs["generation_logits"][0, 0], expected.generation_logits, rtol=1e-4, atol=1e-4)
    assert outputs["num_output_tokens"].item() == 12
    assert outputs["finish_reason"].item() == b"length"
    times = [outputs[f"{it}_time_ns"].item() for it in ("arrival", "first_scheduled", "first_token", "last_token")]
    assert times == sorted(times)


def test_an_answer_ends_at_the_sequence_limit(drafting, greedy_text, heldout_ids, tokenizer):
    text = tokenizer.decode(heldout_ids[:1000], True)
    (response,) = answered(drafting, text_input=text, max_tokens=500, ignore_eos=True)
    assert response.text == greedy_text(text, 500)
    assert response.outputs["finish_reason"].item() == b"length"


def test_cancelled(start, long_engine_dir, draft_settings):
    """Whichever of the two is at work."""
    with start(engine=long_engine_dir, **draft_settings) as served:
        for taken in range(3, 9):
            with served.stream(BLS, max_tokens=ENDLESS, num_draft_tokens=1, stream=True, ignore_eos=True) as stream:
                assert [stream.next().error for _ in range(taken)] == [None] * taken
                stream.cancel()
                for model in ("tensorrt_llm", DRAFT):
                    served.wait_until_idle(model)
        served.settle()
        assert served.sample("iteration_counter") < ENDLESS / 2


REFUSED = {
    "negative": ({"num_draft_tokens": -1}, "num_draft_tokens is -1, wanted 0 or more"),
    "sequences": ({"num_return_sequences": 2}, "num_draft_tokens with num_return_sequences 2, wanted 1"),
    "context logits": ({"return_context_logits": True}, "num_draft_tokens with return_context_logits"),
    "logits alone": ({"num_draft_tokens": 0, "use_draft_logits": True}, "use_draft_logits is true without"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(drafting, case):
    changes, text = REFUSED[case]
    inputs = {"num_draft_tokens": 4, **changes}
    assert text in drafting.refusal(BLS, **inputs)


def test_rows_are_refused(drafting):
    column = np.ones((2, 1), np.int32)
    inputs = {"max_tokens": 4 * column, "num_draft_tokens": 2 * column, "stream": column.astype(bool)}
    text = drafting.refusal(BLS, text_input=np.array([[b"a"], [b"b"]], object), **inputs)
    assert text == "num_draft_tokens with 2 rows, wanted one"
