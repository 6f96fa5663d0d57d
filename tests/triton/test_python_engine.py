"""The engine model with triton_backend python: the same answers as the backend's, from the same requests."""

import queue
import shutil

import numpy as np
import pytest
import tritonclient.grpc as grpc

from served import ENDLESS, PATIENCE_S, PROMPT, tensor

MODEL = "tensorrt_llm"
TIMES = {"arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"}


@pytest.fixture(scope="module")
def python(start, long_engine_dir):
    with start(
        engine=long_engine_dir, triton_backend="python", max_beam_width=4, enable_kv_cache_reuse=False
    ) as served:
        yield served


@pytest.fixture(scope="module")
def native(start):
    def only_the_engine(repository):
        for model in repository.iterdir():
            if model.name != MODEL:
                shutil.rmtree(model)

    with start(max_beam_width=4, enable_kv_cache_reuse=False, edit=only_the_engine) as served:
        yield served


@pytest.fixture(autouse=True)
def server_lives_on(python, greedy, prompts):
    yield
    (response,) = python.ask_tokens(prompts[0])
    assert response.tokens == greedy(prompts[0])


def words(*lists):
    """A word list [1, 2, n]."""
    flat = [token for word in lists for token in word]
    ends = np.cumsum([len(word) for word in lists]).tolist()
    return np.array([[flat, ends + [-1] * (len(flat) - len(ends))]], np.int32)


REQUESTS = {
    "greedy": {},
    "stream": {"streaming": True},
    "sampled": {"runtime_top_k": 20, "temperature": 0.9, "seed": 9, "streaming": True},
    "nucleus": {"runtime_top_p": 0.8, "random_seed": 4, "min_p": 0.01, "runtime_top_p_decay": 0.9},
    "whole vocabulary": {"runtime_top_p": 7.0, "seed": 2},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.6},
    "penalties behind a prompt": {"presence_penalty": 2.5, "prompt_ignore_length": 30},
    "no pair twice": {"no_repeat_ngram_size": 2, "min_length": 0},
    "no end": {"end_id": -1, "ignore_eos": True},
    "with the input": {"exclude_input_in_output": False, "return_num_input_tokens": True},
    "token counts": {"streaming": True, "return_num_input_tokens": True, "return_num_output_tokens": True},
    "log probs": {"return_log_probs": True, "streaming": True},
    "logits": {"return_context_logits": True, "return_generation_logits": True},
    "streamed logits": {"return_generation_logits": True, "streaming": True},
    "statistics": {"return_perf_metrics": True},
    "beams": {"beam_width": 3, "return_log_probs": True, "len_penalty": 0.5, "return_generation_logits": True},
    "streamed beams": {"beam_width": 2, "streaming": True, "early_stopping": 2, "return_generation_logits": True},
    "sequences": {"num_return_sequences": 3, "runtime_top_k": 30, "seed": 6},
    "bias": {"embedding_bias": [0.0] * 100 + [50.0] + [0.0] * 3995},
    "stop words": {"stop_words_list": words([11], [12, 13])},
    "bad words": {"bad_words_list": words([199])},
    "empty lists": {"stop_words_list": np.zeros((1, 2, 0), np.int32), "embedding_bias": np.zeros((1, 0), np.float32)},
    "draft": {"draft_input_ids": [5, 6], "return_perf_metrics": True},
    "virtual tokens": {
        "prompt_embedding_table": np.linspace(-1, 1, 3 * 256).reshape(1, 3, 256).astype(np.float16),
        "prompt_table_extra_ids": [7] * 40,
        "prompt_vocab_size": 2,
    },
    "retention": {
        "retention_token_range_starts": [0, 8],
        "retention_token_range_ends": [8, -1],
        "retention_token_range_priorities": [90, 10],
        "retention_token_range_durations_ms": [-1, 500],
        "retention_decode_priority": 5,
    },
    "no features": {"lookahead_window_size": 0, "guided_decoding_guide": ""},
}


def outputs_of(served, prompt, inputs):
    """Of all responses, by sequence."""
    responses = [it.outputs for it in served.ask_tokens(prompt, 10, **inputs)]
    return sorted(responses, key=lambda it: it["sequence_index"].item() if "sequence_index" in it else 0)


@pytest.mark.parametrize("case", REQUESTS)
def test_answers_are_those_of_the_backend(python, native, prompts, case):
    virtual = [4096, 4097] if case == "virtual tokens" else []
    found, expected = (outputs_of(it, [*virtual, *prompts[1][:38]], REQUESTS[case]) for it in (python, native))
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert set(mine) == set(theirs)
        for name in set(mine) - TIMES:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name, strict=True)


def test_least_tokens_before_the_end(python, greedy, prompts):
    end_id = greedy(prompts[0])[2]
    (short,), (long,) = (python.ask_tokens(prompts[0], end_id=end_id, **it) for it in ({}, {"min_tokens": 6}))
    assert short.tokens == greedy(prompts[0], end_id=end_id)
    assert long.tokens == greedy(prompts[0], end_id=end_id, min_tokens=6)
    assert len(long.tokens) > len(short.tokens)


def test_rows(python, greedy, prompts):
    lengths = [30, 7, 19]
    rows = [prompts[index][:1] * 30 if index == 0 else prompts[index][:length] for index, length in enumerate(lengths)]
    rows = [(row * 30)[:length] for row, length in zip(rows, lengths, strict=True)]
    padded = np.array([row + [0] * (30 - len(row)) for row in rows], np.int32)
    inputs = {
        "input_ids": padded,
        "input_lengths": np.array([[it] for it in lengths], np.int32),
        "request_output_len": np.array([[9], [5], [12]], np.int32),
        "streaming": np.array([[True], [False], [True]]),
    }
    said = [[], [], []]
    with python.stream(MODEL, **inputs) as stream:
        responses = list(stream)
    assert [it.final for it in responses] == [False] * (len(responses) - 1) + [True]
    for response in responses:
        said[response.outputs["batch_index"].item()] += response.tokens
    assert said == [greedy(row, count) for row, count in zip(rows, (9, 5, 12), strict=True)]


def test_text_models_around_it(python, greedy_text):
    assert python.text("ensemble", max_tokens=20) == greedy_text(PROMPT, 20)
    assert python.refusal("tensorrt_llm_bls") == "model tensorrt_llm is not loaded by the inflight backend"
    assert "".join(it["text_output"] for it in python.events("ensemble", max_tokens=20)) == greedy_text(PROMPT, 20)


def test_stop_order(python, prompts):
    with python.stream_tokens(prompts[0][:20], ENDLESS, streaming=True, request_id="mine") as stream:
        stream.next()
        with python.stream_tokens([0], 1, stop=True, request_id="mine") as order:
            (answer,) = order
        assert (answer.final, answer.error, answer.outputs) == (True, None, {})
        *others, last = stream
    assert (last.final, last.error, last.outputs) == (True, None, {})
    assert len(others) < ENDLESS - 1
    with python.stream_tokens([0], 1, stop=True) as order:
        (answer,) = order
    assert answer.error == "Trying to stop a request but request ID is not provided"


def test_16_streams_on_one_connection(python, greedy, prompts):
    answers = queue.SimpleQueue()
    with grpc.InferenceServerClient(python.server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, prompt in enumerate(prompts[:16]):
            values = {"input_ids": prompt, "input_lengths": len(prompt), "request_output_len": 8, "streaming": True}
            inputs = [tensor(name, value) for name, value in values.items()]
            client.async_stream_infer(MODEL, inputs, request_id=str(number))
        said = [[] for _ in range(16)]
        while any(len(it) < 8 for it in said):
            result, error = answers.get(timeout=PATIENCE_S)
            assert error is None, error
            said[int(result.get_response().id)] += result.as_numpy("output_ids").ravel().tolist()
    assert said == [greedy(prompt) for prompt in prompts[:16]]


def test_parameter_that_is_no_utf8(python):
    body = b'{"input_ids": [1, 2], "input_lengths": 2, "request_output_len": 2, "mine": "a\xff"}'
    answer = python.post(f"/v2/models/{MODEL}/generate", body)
    assert (answer.status, "not UTF-8: invalid start byte at byte" in answer.error) == (400, True)


REFUSED = {
    "no prompt": ({"input_ids": []}, "input_ids"),
    "prompt shorter than its length": ({"input_lengths": 9}, "input input_lengths is 9; wanted 1 to 3"),
    "nothing to generate": ({"request_output_len": 0}, "max_tokens is 0"),
    "temperature": ({"temperature": -1.0}, "temperature is -1"),
    "no top_p": ({"runtime_top_p": float("nan")}, "input runtime_top_p is nan; wanted a finite number"),
    "end": ({"end_id": -5}, "input end_id is -5; wanted -1 or more"),
    "words": ({"stop_words_list": np.array([[[1, 2], [2, 1]]], np.int32)}, "end offset 1 after 2; wanted rising"),
    "words behind the end": ({"bad_words_list": np.array([[[1, 2], [-1, 1]]], np.int32)}, "after the first -1"),
    "adapter": ({"lora_task_id": 0}, "input lora_task_id is not supported"),
    "narrow table": ({"prompt_embedding_table": np.zeros((1, 2, 3), np.float16)}, "prompt_embedding_table"),
    "table's size": ({"prompt_vocab_size": 4}, "prompt_vocab_size is 4; wanted 0 to the 0 rows"),
    "few extra ids": ({"prompt_table_extra_ids": [1]}, "prompt_table_extra_ids has 1 values; wanted as many as"),
    "half a range": ({"retention_token_range_starts": [0]}, "have 1, 0, 0, 0 values; wanted equally many"),
    "kept too well": ({"retention_decode_priority": 101}, "retention_decode_priority is 101; wanted 0 to 100"),
    "guide": ({"guided_decoding_guide": "{}"}, "input guided_decoding_guide is not supported"),
    "disaggregation": ({"parameters": {"request_type": "context_only"}}, "request_type is context_only"),
    "outputs": ({"outputs": ["output_ids"]}, "the requested outputs lack sequence_length"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(python, case):
    fields, text = REFUSED[case]
    prompt = {"input_ids": [1, 2, 3], "input_lengths": 3, "request_output_len": 4}
    assert text in python.refusal(**{**prompt, **fields})
