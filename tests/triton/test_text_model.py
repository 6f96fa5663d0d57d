"""The model that tokenizes and detokenizes itself: what the ensemble answers, stop words in the text, and ends that
reach the engine at once."""

import json
import socket

import numpy as np
import pytest

from inflight.executor import Request
from served import ENDLESS, PATIENCE_S, PROMPT, becomes

TEXT = "inflight_text"
MANY = 900


def answer(served, **fields):
    """(text, finish_reason) without streaming."""
    body = served.generate(TEXT, **fields)
    assert body.status == 200, body
    return body.json["text_output"], body.json["finish_reason"]


def streamed(served, **fields):
    """(pieces, finish_reason) of a stream."""
    events = served.events(TEXT, **fields)
    assert "error" not in events[-1], events[-1]
    return [event["text_output"] for event in events], events[-1]["finish_reason"]


def test_same_answers_as_the_ensemble(served):
    fields = {
        "max_tokens": 40,
        "temperature": 0.9,
        "top_k": 20,
        "seed": 5,
        "bad_words": ["self", " return"],
        "embedding_bias_words": ["\n", " def"],
        "embedding_bias_weights": [-2.5, 1.0],
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.4,
        "prompt_ignore_length": 3,
    }
    expected = served.generate("ensemble", **fields).json
    assert answer(served, **fields) == (expected["text_output"], expected["finish_reason"])
    assert "".join(streamed(served, **fields)[0]) == expected["text_output"]


def test_the_prompt_in_the_output(served, greedy_text):
    text = PROMPT + greedy_text(PROMPT, 12)
    assert answer(served, max_tokens=12, exclude_input_in_output=False) == (text, "length")
    stop = text[len(PROMPT) + 4 : len(PROMPT) + 9]
    expected = text[: text.index(stop, len(PROMPT)) + len(stop)]
    found = answer(served, max_tokens=12, exclude_input_in_output=False, stop_words=[stop, PROMPT[:8]])
    assert found == (expected, "stop")


def stop_words_of(text, tokens):
    """Words of the text that no token begins or ends with, and so on: every cut of it counts."""
    return [text[begin:end] for begin, end in [(3, 9), (5, 6), (10, 23), (len(text) - 3, len(text))]] + [tokens]


def test_stop_words_over_tokens(served, greedy_text):
    whole = greedy_text(PROMPT, 40)
    for stop in stop_words_of(whole, whole[:20]):
        expected = whole[: whole.index(stop) + len(stop)]
        assert answer(served, max_tokens=40, stop_words=["not in there", stop]) == (expected, "stop")
        pieces, reason = streamed(served, max_tokens=40, stop_words=["not in there", stop])
        assert ("".join(pieces), reason) == (expected, "stop")


def test_nothing_beyond_a_stop_word_is_ever_sent(served, greedy_text):
    """What may become a stop word is held back, and comes with the token that decides it."""
    whole = greedy_text(PROMPT, 30)
    held = whole[4:16]
    pieces, reason = streamed(served, max_tokens=30, stop_words=[held + "\x00"])
    assert ("".join(pieces), reason) == (whole, "length")
    sent = ""
    for piece in pieces:
        sent += piece
        assert not any(sent.endswith(held[:size]) for size in range(1, len(held))) or sent == whole


def test_a_stop_word_ends_the_engine_too(endless, greedy_text):
    stop = greedy_text(PROMPT, 8)[-6:]
    for stream in (False, True):
        ask = streamed if stream else answer
        assert ask(endless, max_tokens=ENDLESS, ignore_eos=True, stop_words=[stop])[1] == "stop"


def test_stop_words_count_from_min_tokens_on(served, greedy_text):
    whole = greedy_text(PROMPT, 30)
    stop = whole[1]
    text, reason = answer(served, max_tokens=30, min_tokens=10, stop_words=[stop])
    assert reason == "stop"
    assert text.endswith(stop)
    assert len(text) >= len(greedy_text(PROMPT, 10)) and whole.startswith(text)


def test_multi_byte_stop_word(served):
    fields = {
        "max_tokens": 64,
        "embedding_bias_words": ["é€😀"],
        "embedding_bias_weights": [100.0],
        "top_k": 50,
        "temperature": 20.0,
        "seed": 3,
    }
    whole, _ = answer(served, **fields)
    letter = next(it for it in "é€😀" if it in whole)
    expected = whole[: whole.index(letter) + 1]
    pieces, reason = streamed(served, **fields, stop_words=[letter])
    assert ("".join(pieces), reason) == (expected, "stop")


def column(values, dtype):
    return np.array([[value] for value in values], dtype)


def test_rows_of_a_batch(served, greedy_text):
    prompts = [PROMPT, "def add(a, b):", "x"]
    lengths = [12, 5, 20]
    whole = [greedy_text(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    stop = whole[0][5:10]
    expected = [text[: text.index(stop) + len(stop)] if stop in text else text for text in whole]
    for stream in (True, False):
        with served.stream(
            TEXT,
            text_input=column([prompt.encode() for prompt in prompts], object),
            max_tokens=column(lengths, np.int32),
            stream=column([stream] * 3, bool),
            stop_words=column([stop.encode()] * 3, object),
        ) as responses:
            texts, finals = ["", "", ""], []
            for response in responses:
                texts[response.outputs["batch_index"].item()] += response.text
                finals.append(response.final)
            assert responses.is_silent()
        assert texts == expected
        assert finals == [False] * (len(finals) - 1) + [True]


def test_sequences_of_one_prompt(served, executor, tokenizer):
    """Each is stopped for itself; the engine ends when all are."""
    request = Request(tokenizer.encode(PROMPT, True), 20, num_return_sequences=3, top_k=40, seed=5)
    whole = {it.sequence_index: tokenizer.decode(it.tokens) for it in executor.submit(request)}
    stop = next(whole[0][i : i + 3] for i in range(len(whole[0])) if whole[0][i : i + 3] not in whole[1] + whole[2])
    expected = {**whole, 0: whole[0][: whole[0].index(stop) + 3]}
    for stream in (True, False):
        options = {"num_return_sequences": 3, "top_k": 40, "seed": 5, "stop_words": [stop], "stream": stream}
        with served.stream(TEXT, max_tokens=20, **options) as responses:
            texts, reasons = dict.fromkeys(range(3), ""), {}
            for response in responses:
                index = response.outputs["sequence_index"].item()
                texts[index] += response.text
                reasons[index] = response.outputs["finish_reason"].item()
        assert texts == expected
        assert reasons == {0: b"stop", 1: b"length", 2: b"length"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_stopped_sequence_ends_in_the_engine_while_others_go_on(served, executor, tokenizer, stream):
    request = Request(tokenizer.encode(PROMPT, True), MANY, num_return_sequences=2, top_k=40, seed=5)
    whole = {it.sequence_index: tokenizer.decode(it.tokens) for it in executor.submit(request)}
    begin = next(i for i in range(len(whole[0])) if whole[0][i : i + 6] not in whole[1])
    stop = whole[0][begin : begin + 6]
    served.settle()
    before = served.sample("inflight_generated_tokens_total")
    options = {"num_return_sequences": 2, "top_k": 40, "seed": 5, "stop_words": [stop], "stream": stream}
    with served.stream(TEXT, max_tokens=MANY, ignore_eos=True, **options) as responses:
        texts = dict.fromkeys(range(2), "")
        for response in responses:
            texts[response.outputs["sequence_index"].item()] += response.text
    assert texts == {0: whole[0][: begin + 6], 1: whole[1]}
    served.settle()
    assert MANY <= served.sample("inflight_generated_tokens_total") - before < 2 * MANY - 100


@pytest.mark.parametrize("stop_words", [[], ["never in there"]])
def test_outputs(served, executor, tokenizer, stop_words):
    """Log probabilities, logits and counts are the engine's, gathered where a stop word might end the answer."""
    ids = tokenizer.encode(PROMPT, True)
    request = Request(ids, 6, log_probs=True, generation_logits=True, context_logits=True)
    (expected,) = executor.submit(request)
    switches = {f"return_{name}": True for name in ("log_probs", "generation_logits", "context_logits")}
    switches |= {f"return_{name}": True for name in ("num_input_tokens", "num_output_tokens", "perf_metrics")}
    options = {"stop_words": stop_words} if stop_words else {}
    with served.stream(TEXT, max_tokens=6, stream=False, **switches, **options) as stream:
        (response,) = stream
    outputs = response.outputs
    assert outputs["output_log_probs"].shape == (1, 1, 6)
    assert np.abs(outputs["output_log_probs"][0, 0] - expected.log_probs).max() < 1e-5
    assert outputs["generation_logits"].shape == (1, 1, 6, 4096)
    assert outputs["context_logits"].shape == (1, len(ids), 4096)
    assert np.abs(outputs["cum_log_probs"].item() - expected.cum_log_prob) < 1e-4
    assert (outputs["num_input_tokens"].item(), outputs["num_output_tokens"].item()) == (len(ids), 6)
    assert outputs["last_token_time_ns"].item() > outputs["arrival_time_ns"].item()


def test_only_requested_outputs(served):
    with served.stream(TEXT, outputs=["finish_reason"], stream=False) as stream:
        (response,) = stream
    assert list(response.outputs) == ["finish_reason"]


def test_end_id_of_the_tokenizer_and_others(served, greedy, greedy_text, tokenizer):
    ids = greedy(tokenizer.encode(PROMPT, True), 30)
    assert answer(served, max_tokens=30) == (greedy_text(PROMPT, 30), "length")
    text, reason = answer(served, max_tokens=30, end_id=ids[4])
    assert (text, reason) == (tokenizer.decode(ids[: ids.index(ids[4])]), "stop")
    assert answer(served, max_tokens=30, end_id=ids[4], ignore_eos=True) == (tokenizer.decode(ids), "length")
    assert answer(served, max_tokens=30, end_id=-1) == (tokenizer.decode(ids), "length")


REFUSED = {
    "empty prompt": ({"text_input": ""}, "the prompt (text_input) gives 0 tokens; wanted at least 1"),
    "long prompt": ({"text_input": "x " * 2000}, "the prompt has 2001 tokens; this model takes at most 1023"),
    "no tokens": ({"max_tokens": 0}, "input max_tokens is 0; wanted 1 or more"),
    "temperature": ({"temperature": -0.5}, "input temperature is -0.5; wanted 0 to"),
    "weights": (
        {"embedding_bias_words": ["a", "b"], "embedding_bias_weights": [1.0]},
        "embedding_bias_words holds 2 words, embedding_bias_weights 1 weights; wanted as many of each",
    ),
    "encoder": ({"decoder_text_input": "a"}, "input decoder_text_input needs a feature that this version does not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(served, case):
    fields, text = REFUSED[case]
    refused = served.generate(TEXT, **fields)
    assert refused.status == 400
    assert text in refused.error


def test_bytes_that_are_no_text(served):
    assert "input text_input is not UTF-8 at byte 3 of 4" in served.refusal(TEXT, text_input=b"abc\xff")
    assert "input stop_words is not UTF-8 at byte 0 of 1" in served.refusal(TEXT, stop_words=[b"\x80"])


def test_one_bad_row_is_named(served):
    prompts = column([b"a", b""], object)
    text = served.refusal(
        TEXT, text_input=prompts, max_tokens=column([4, 4], np.int32), stream=column([True] * 2, bool)
    )
    assert text == "row 1: the prompt (text_input) gives 0 tokens; wanted at least 1"


@pytest.mark.parametrize("stream", [True, False])
def test_cancel_reaches_the_engine(endless, stream):
    before = endless.cancelled_requests(TEXT)
    with endless.stream(TEXT, max_tokens=ENDLESS, ignore_eos=True, stream=stream) as responses:
        if stream:
            assert [responses.next().error for _ in range(3)] == [None] * 3
        endless.wait_until_active()
        responses.cancel()
        endless.wait_until_idle()
    becomes(before + 1, lambda: endless.cancelled_requests(TEXT))


def test_disconnect_reaches_the_engine(endless):
    body = json.dumps({"text_input": PROMPT, "max_tokens": ENDLESS, "stream": True, "ignore_eos": True}).encode()
    with socket.create_connection(("127.0.0.1", endless.server.ports.http), timeout=PATIENCE_S) as connection:
        head = f"POST /v2/models/{TEXT}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        received = b""
        while received.count(b"data:") < 3:
            received += connection.recv(4096)
    endless.wait_until_idle()


def test_stop_by_id(endless):
    with endless.stream(TEXT, max_tokens=ENDLESS, ignore_eos=True, request_id="stop me") as stream:
        stream.next()
        with endless.stream(TEXT, stop=True, request_id="stop me") as order:
            (ordered,) = order
        *_, last = stream
    assert (ordered.final, ordered.error, ordered.outputs) == (True, None, {})
    assert (last.final, last.error, last.outputs) == (True, None, {})


def test_timeout_ends_with_what_is_there(served, greedy_text):
    with served.stream(TEXT, text_input="def", max_tokens=MANY, ignore_eos=True, timeout=200_000) as stream:
        responses = [response for response in stream if response.outputs]
    assert responses[-1].outputs["finish_reason"].item() == b"timeout"
    text = "".join(it.text for it in responses)
    assert len(responses) < MANY
    beginning = greedy_text("def", 8)
    assert text.startswith(beginning) or beginning.startswith(text)  # a busy machine gets less far


def test_one_response_a_request(single, greedy_text):
    text = greedy_text(PROMPT, 12)
    outputs = single.infer(TEXT, text_input=PROMPT, max_tokens=12)
    assert outputs["text_output"].item().decode() == text
    outputs = single.infer(TEXT, text_input=PROMPT, max_tokens=12, stop_words=[text[4:9]])
    assert outputs["text_output"].item().decode() == text[: text.index(text[4:9]) + 5]
