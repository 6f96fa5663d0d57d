"""gRPC streams: the executor's tokens, one final response, many streams at once."""

import numpy as np
import pytest

from served import PROMPT, TEXT_MODELS


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_text_model(served, greedy_text, model):
    with served.stream(model, max_tokens=30) as stream:
        responses = list(stream)
        assert stream.is_silent()
    assert "".join(response.text for response in responses) == greedy_text(PROMPT, 30)
    assert [response.final for response in responses] == [False] * (len(responses) - 1) + [True]
    assert len([response for response in responses if response.outputs]) == 30


def test_tokens_one_by_one(served, greedy, prompts):
    with served.stream_tokens(prompts[0], 30, streaming=True, request_id="one") as stream:
        responses = list(stream)
        assert stream.is_silent()
    assert [response.tokens for response in responses] == [[token] for token in greedy(prompts[0], 30)]
    assert [response.final for response in responses] == [False] * 29 + [True]
    assert {response.request_id for response in responses} == {"one"}
    assert [response.outputs["finish_reason"].item() for response in responses] == [b""] * 29 + [b"length"]
    assert [response.outputs["sequence_final"].item() for response in responses] == [False] * 29 + [True]


def test_all_tokens_at_once(served, greedy, prompts):
    (response,) = served.ask_tokens(prompts[0], 30)
    assert response.tokens == greedy(prompts[0], 30)
    assert response.outputs["output_ids"].shape == (1, 1, 30)
    assert response.outputs["sequence_length"].shape == (1, 1)
    assert response.request_id == ""


def test_prompts_of_all_lengths(served, greedy, prompts):
    for prompt in [*prompts[:12], prompts[0][:1]]:
        (response,) = served.ask_tokens(prompt)
        assert response.tokens == greedy(prompt)


def test_longest_prompt(served, greedy, heldout_ids):
    prompt = heldout_ids[:1023]
    (response,) = served.ask_tokens(prompt, 50)
    assert response.tokens == greedy(prompt, 50)
    assert len(response.tokens) == 1


def test_32_streams_of_tokens(served, greedy, prompts):
    streams = [served.stream_tokens(prompt, 24, streaming=True) for prompt in prompts[:32]]
    for prompt, stream in zip(prompts, streams, strict=False):
        with stream:
            responses = list(stream)
        assert [token for response in responses for token in response.tokens] == greedy(prompt, 24)
        assert [response.final for response in responses] == [False] * 23 + [True]


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_32_streams_of_text(served, greedy_text, tokenizer, prompts, model):
    texts = [tokenizer.decode(prompt, True) for prompt in prompts[:32]]
    streams = [served.stream(model, text_input=text, max_tokens=12) for text in texts]
    for text, stream in zip(texts, streams, strict=True):
        with stream:
            responses = list(stream)
        assert responses[-1].error is None
        assert "".join(response.text for response in responses) == greedy_text(text, 12)


def test_rows_of_a_batch(served, greedy, prompts):
    """Each row has its own length and is tagged by batch_index; the request as a whole ends once."""
    rows = [prompts[1][:20], prompts[2][:7], prompts[3][:13]]
    padded = np.full((3, 20), 1, np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    lengths = np.array([[len(row)] for row in rows], np.int32)
    wanted = np.array([[5], [9], [7]], np.int32)
    for streaming in (True, False):
        flags = np.full((3, 1), streaming)
        with served.stream(
            "tensorrt_llm", input_ids=padded, input_lengths=lengths, request_output_len=wanted, streaming=flags
        ) as stream:
            responses = list(stream)
            assert stream.is_silent()
        tokens = {index: [] for index in range(3)}
        for response in responses:
            assert response.outputs["batch_index"].shape == (1, 1)
            tokens[response.outputs["batch_index"].item()] += response.tokens
        assert tokens == {index: greedy(row, wanted[index].item()) for index, row in enumerate(rows)}
        assert [response.final for response in responses] == [False] * (len(responses) - 1) + [True]


def test_one_bad_row_fails_the_request_once(served):
    ids = np.array([[5, 6], [5, 99999]], np.int32)
    ones = np.ones((2, 1), np.int32)
    with served.stream("tensorrt_llm", input_ids=ids, input_lengths=2 * ones, request_output_len=500 * ones) as stream:
        (response,) = stream
        assert stream.is_silent()
    assert response.error == "row 1: input token 99999 is outside the vocabulary of 4096 tokens"


def test_sequences_of_one_prompt(served, executor, prompts):
    from inflight.executor import Request

    request = Request(prompts[4], 10, num_return_sequences=3, top_k=40, seed=5)
    expected = {result.sequence_index: result.tokens for result in executor.submit(request)}
    for streaming in (True, False):
        responses = served.ask_tokens(
            prompts[4], 10, num_return_sequences=3, runtime_top_k=40, seed=5, streaming=streaming
        )
        found = {index: [] for index in range(3)}
        for response in responses:
            found[response.outputs["sequence_index"].item()] += response.tokens
        assert found == expected
        assert [response.final for response in responses] == [False] * (len(responses) - 1) + [True]
    assert len({tuple(tokens) for tokens in expected.values()}) > 1


def test_sequences_of_one_text(served):
    with served.stream(num_return_sequences=3, top_k=40, seed=5) as stream:
        responses = list(stream)
    assert {r.outputs["sequence_index"].item() for r in responses if r.outputs} == {0, 1, 2}
