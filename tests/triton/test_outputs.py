"""What a response carries, and what the sampling inputs do to it; the executor says what is right."""

import time

import numpy as np
import pytest

from inflight.executor import Request
from served import PROMPT, TEXT_MODELS

VOCABULARY = 4096
PERF_OUTPUTS = {
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
}
ALWAYS = {"output_ids", "sequence_length", "finish_reason", "sequence_final", "prefix_ids"}


@pytest.fixture(scope="module")
def prompt(heldout_ids):
    return heldout_ids[3000:3020]


@pytest.fixture(scope="module")
def answer(greedy, prompt):
    return greedy(prompt, 40)


def one_response(served, prompt, max_tokens=12, **inputs):
    (response,) = served.ask_tokens(prompt, max_tokens, **inputs)
    return response


def test_outputs_without_any_wish(served, prompt):
    assert set(one_response(served, prompt).outputs) == ALWAYS


def test_only_requested_outputs(served, prompt):
    with served.stream(
        "tensorrt_llm",
        outputs=["output_ids", "sequence_length"],
        input_ids=prompt,
        input_lengths=len(prompt),
        request_output_len=4,
        return_perf_metrics=True,
        return_log_probs=True,
    ) as stream:
        (response,) = stream
    assert list(response.outputs) == ["output_ids", "sequence_length"]


def test_log_probs(served, executor, prompt):
    (expected,) = executor.submit(Request(prompt, 12, log_probs=True))
    response = one_response(served, prompt, return_log_probs=True)
    assert response.outputs["output_log_probs"].shape == (1, 1, 12)
    assert response.outputs["cum_log_probs"].shape == (1, 1)
    assert np.allclose(response.outputs["output_log_probs"].flatten(), expected.log_probs, atol=1e-5)
    assert response.outputs["cum_log_probs"].item() == pytest.approx(expected.cum_log_prob, abs=1e-4)


def test_streamed_log_probs(served, executor, prompt):
    (expected,) = executor.submit(Request(prompt, 12, log_probs=True))
    responses = served.ask_tokens(prompt, 12, return_log_probs=True, streaming=True)
    assert [response.outputs["output_log_probs"].shape for response in responses] == [(1, 1, 1)] * 12
    found = [response.outputs["output_log_probs"].item() for response in responses]
    assert np.allclose(found, expected.log_probs, atol=1e-5)
    assert responses[-1].outputs["cum_log_probs"].item() == pytest.approx(expected.cum_log_prob, abs=1e-4)


def test_context_logits(served, executor, prompt):
    (expected,) = executor.submit(Request(prompt, 1, context_logits=True))
    found = one_response(served, prompt, 1, return_context_logits=True).outputs["context_logits"]
    assert found.shape == (1, len(prompt), VOCABULARY)
    assert np.abs(found[0] - expected.context_logits).max() < 1e-4


def test_generation_logits(served, executor, prompt):
    (expected,) = executor.submit(Request(prompt, 5, generation_logits=True))
    found = one_response(served, prompt, 5, return_generation_logits=True).outputs["generation_logits"]
    assert found.shape == (1, 1, 5, VOCABULARY)
    assert np.abs(found[0, 0] - expected.generation_logits).max() < 1e-4
    responses = served.ask_tokens(prompt, 5, return_generation_logits=True, streaming=True)
    streamed = [response.outputs["generation_logits"] for response in responses]
    assert [it.shape for it in streamed] == [(1, 1, 1, VOCABULARY)] * 5
    assert np.abs(np.concatenate(streamed)[:, 0, 0] - expected.generation_logits).max() < 1e-4


def test_logits_of_text_models(served):
    for model in TEXT_MODELS:
        with served.stream(model, return_generation_logits=True, max_tokens=3, return_log_probs=True) as stream:
            responses = [response for response in stream if response.outputs]
        assert [response.outputs["generation_logits"].shape for response in responses] == [(1, 1, 1, VOCABULARY)] * 3
        assert [response.outputs["output_log_probs"].shape for response in responses] == [(1, 1, 1)] * 3


def test_perf_metrics_of_first_and_repeated_prompt(served, heldout_ids):
    # A first token that no text begins with: blocks of an earlier prompt are shared from their first token on.
    prompt = [VOCABULARY - 1, *heldout_ids[7000:7109]]
    counts = []
    for _ in range(2):
        began = time.monotonic_ns()
        outputs = one_response(served, prompt, 4, return_perf_metrics=True).outputs
        took = time.monotonic_ns() - began
        assert set(outputs) == ALWAYS | PERF_OUTPUTS
        assert {outputs[name].shape for name in PERF_OUTPUTS} == {(1, 1)}
        counts.append([outputs[f"kv_cache_{name}_blocks"].item() for name in ("alloc_new", "alloc_total", "reused")])
        times = [
            outputs[f"{name}_time_ns"].item() for name in ("arrival", "first_scheduled", "first_token", "last_token")
        ]
        assert times == sorted(times)
        assert times[-1] - times[0] < took
        assert outputs["acceptance_rate"].item() == 0.0
    assert counts == [[4, 4, 0], [1, 1, 4]]


def test_perf_metrics_of_text_models(served):
    for model in TEXT_MODELS:
        with served.stream(model, return_perf_metrics=True, stream=False) as stream:
            (response,) = [response for response in stream if response.outputs]
        assert set(response.outputs) >= PERF_OUTPUTS


def test_token_counts(served, prompt):
    outputs = one_response(served, prompt, 9, return_num_input_tokens=True, return_num_output_tokens=True).outputs
    assert (outputs["num_input_tokens"].item(), outputs["num_output_tokens"].item()) == (len(prompt), 9)


def test_input_in_output(served, prompt, answer):
    response = one_response(served, prompt, 40, exclude_input_in_output=False)
    assert response.tokens == prompt + answer
    streamed = served.ask_tokens(prompt, 40, exclude_input_in_output=False, streaming=True)
    assert [token for response in streamed for token in response.tokens] == answer


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_input_in_text_output(served, greedy_text, model):
    assert served.text(model, exclude_input_in_output=False) == PROMPT + greedy_text(PROMPT)


def test_end_id(served, prompt, answer):
    end = answer[7]
    response = one_response(served, prompt, 40, end_id=end, pad_id=1)
    assert response.tokens == answer[: answer.index(end)]
    assert response.outputs["finish_reason"].item() == b"stop"
    assert one_response(served, prompt, 40, end_id=end, ignore_eos=True).tokens == answer
    assert one_response(served, prompt, 40, end_id=-1).tokens == answer


@pytest.mark.parametrize("name", ["min_length", "min_tokens"])
def test_least_length(served, greedy, prompt, answer, name):
    end = answer[3]
    tokens = one_response(served, prompt, 40, end_id=end, **{name: 20}).tokens
    assert tokens == greedy(prompt, 40, end_id=end, min_tokens=20)
    assert len(tokens) >= 20


@pytest.mark.parametrize("name", ["random_seed", "seed"])
def test_seeds(served, greedy, prompt, name):
    def sample(**seed):
        return one_response(served, prompt, temperature=1.3, runtime_top_k=50, runtime_top_p=0.95, **seed).tokens

    for seed in (1, 2**40):
        assert sample(**{name: seed}) == greedy(prompt, 12, temperature=1.3, top_k=50, top_p=0.95, seed=seed)
    assert sample(**{name: 1}) != sample(**{name: 2})
    assert sample() == sample(**{name: 0})


SAMPLING = {
    "temperature": {"temperature": 0.0},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "presence_penalty": {"presence_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": 2.0},
    "prompt_ignore_length": {"frequency_penalty": 2.0, "prompt_ignore_length": 5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_p": {"min_p": 0.1, "top_k": 30, "seed": 4},
}


@pytest.mark.parametrize("case", SAMPLING)
def test_sampling_inputs_reach_the_engine(served, greedy, prompt, case):
    fields = SAMPLING[case]
    inputs = {"runtime_top_k" if name == "top_k" else name: value for name, value in fields.items()}
    assert one_response(served, prompt, 40, **inputs).tokens == greedy(prompt, 40, **fields)


def test_word_lists_of_tokens(served, prompt, answer):
    word = answer[10:13]
    words = np.array([[[4095, 4094, *word], [2, 5, -1, -1, -1]]], np.int32)
    assert one_response(served, prompt, 40, stop_words_list=words).tokens == answer[:13]
    banned = np.array([[[answer[0], *answer[4:6]], [1, 3, -1]]], np.int32)
    tokens = one_response(served, prompt, 40, bad_words_list=banned).tokens
    assert answer[0] not in tokens
    assert answer[4:6] not in [tokens[i : i + 2] for i in range(len(tokens))]


def test_embedding_bias(served, prompt):
    bias = [0.0] * VOCABULARY
    bias[1234] = 1e4
    assert one_response(served, prompt, 5, embedding_bias=bias).tokens == [1234] * 5


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_words_as_text(served, greedy_text, model):
    whole = greedy_text(PROMPT, 40)
    word = " file"
    assert word in whole
    cut = whole[: whole.index(word) + len(word)]
    assert served.text(model, max_tokens=40, stop_words=[" unlikely words", word]) == cut
    assert "".join(it["text_output"] for it in served.events(model, max_tokens=40, stop_words=[word])) == cut
    without = served.text(model, max_tokens=40, bad_words=[word])
    assert word not in without
    assert len(without) > len(cut)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_bias_of_words(served, model):
    text = served.text(model, embedding_bias_words=[" file"], embedding_bias_weights=[1e4])
    assert text == " file" * 8


def test_bias_without_its_weight(served):
    answer = served.generate(embedding_bias_words=["a", "b"], embedding_bias_weights=[1.0])
    assert answer.status == 400
    assert (
        "EMBEDDING_BIAS_WORDS holds 2 words, EMBEDDING_BIAS_WEIGHTS 1 weights, wanted as many of each" in answer.error
    )


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_end_of_text(served, tokenizer, greedy, model):
    """The end token of the tokenizer ends the answer, unless the request names another one."""
    answer = greedy(tokenizer.encode(PROMPT, True))
    end = answer[3]
    reply = served.generate(model, end_id=end).json
    assert reply["text_output"] == tokenizer.decode(answer[: answer.index(end)], True)
    assert reply["finish_reason"] == "stop"
    forced = {"embedding_bias_words": ["<|endoftext|>"], "embedding_bias_weights": [1e4]}
    assert served.generate(model, **forced, min_tokens=3).json["finish_reason"] == "stop"
    assert served.generate(model, **forced, ignore_eos=True).json["finish_reason"] == "length"
