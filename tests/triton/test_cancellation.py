"""Requests that end before their answer does: cancelled, abandoned, stopped by id, out of time."""

import json
import socket

import numpy as np

from served import PROMPT, becomes

MANY = 900  # tokens; takes seconds (see steps_stay_few)


def test_cancelled_stream_of_tokens(served, prompts, steps_stay_few):
    before = served.cancelled_requests()
    with served.stream_tokens(prompts[0], MANY, streaming=True) as stream:
        assert [stream.next().error for _ in range(3)] == [None] * 3
        stream.cancel()
        served.wait_until_idle()
    becomes(before + 1, served.cancelled_requests)


def test_cancelled_answer_without_streaming(served, prompts, steps_stay_few):
    before = served.cancelled_requests()
    with served.stream_tokens(prompts[0], MANY) as stream:
        served.wait_until_active()
        stream.cancel()
        served.wait_until_idle()
    becomes(before + 1, served.cancelled_requests)


def test_cancelled_stream_of_scripted_text(served, steps_stay_few):
    cancel_text(served, "tensorrt_llm_bls")


def test_cancelled_stream_of_ensemble_text(served):
    """The server (2.51) does not tell the engine model: it goes on to the end, and then all is well."""
    cancel_text(served, "ensemble")


def cancel_text(served, model):
    with served.stream(model, max_tokens=MANY, ignore_eos=True) as stream:
        assert [stream.next().error for _ in range(3)] == [None] * 3
        stream.cancel()
        served.wait_until_idle()


def test_disconnected_http_stream_of_scripted_text(served, steps_stay_few):
    disconnect(served, "tensorrt_llm_bls")


def test_disconnected_http_stream_of_ensemble_text(served):
    disconnect(served, "ensemble")


def disconnect(served, model):
    address = ("127.0.0.1", served.server.ports.http)
    body = json.dumps({"text_input": PROMPT, "max_tokens": MANY, "stream": True, "ignore_eos": True}).encode()
    with socket.create_connection(address, timeout=30) as connection:
        head = f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        received = b""
        while received.count(b"data:") < 3:
            received += connection.recv(4096)
    served.wait_until_idle()


def test_disconnects_of_many(served, prompts, steps_stay_few):
    streams = [served.stream_tokens(prompt[:50], MANY, streaming=True) for prompt in prompts[:16]]
    for stream in streams:
        stream.next()
    for stream in streams:
        stream.cancel()
    served.wait_until_idle()
    for stream in streams:
        stream.close()


def stop(served, request_id):
    """The responses to a stop order, as the existing clients send it."""
    with served.stream_tokens([0], 1, stop=True, request_id=request_id, parameters={"Streaming": True}) as stream:
        return list(stream)


def require_end(stream):
    """An ordered end is no error: tokens, then an empty final response."""
    with stream:
        *others, last = stream
        assert len(others) < MANY - 1
        assert (last.final, last.error, last.outputs) == (True, None, {})
        assert stream.is_silent()


def test_stop_by_id(served, greedy, prompts, steps_stay_few):
    with (
        served.stream_tokens(prompts[0], MANY, streaming=True, request_id="stop me") as stream,
        served.stream_tokens(prompts[1], 60, request_id="not me") as other,
    ):
        stream.next()
        (answer,) = stop(served, "stop me")
        assert (answer.final, answer.error, answer.outputs) == (True, None, {})
        require_end(stream)
        (untouched,) = other
        assert untouched.tokens == greedy(prompts[1], 60)


def test_stop_by_an_id_that_several_share(served, prompts, steps_stay_few):
    streams = [served.stream_tokens(prompts[0], MANY, streaming=True, request_id="twin") for _ in range(2)]
    for stream in streams:
        stream.next()
    stop(served, "twin")
    for stream in streams:
        require_end(stream)


def test_stop_of_an_unknown_id(served):
    (answer,) = stop(served, "nobody")
    assert (answer.final, answer.error, answer.outputs) == (True, None, {})


def test_stop_that_says_no_is_a_plain_request(served, greedy, prompts):
    (response,) = served.ask_tokens(prompts[0], stop=False)
    assert response.tokens == greedy(prompts[0])


def test_timeout_ends_with_what_is_there(served, greedy, prompts):
    (response,) = served.ask_tokens(prompts[0][:10], MANY, timeout=200_000)
    assert response.outputs["finish_reason"].item() == b"timeout"
    assert 0 < len(response.tokens) < MANY
    assert response.tokens == greedy(prompts[0][:10], len(response.tokens))


def test_cancelled_batch(served, steps_stay_few):
    column = np.ones((4, 1), np.int32)
    with served.stream(
        "tensorrt_llm",
        input_ids=np.arange(3, 23, dtype=np.int32).reshape(4, 5),
        input_lengths=5 * column,
        request_output_len=MANY * column,
        streaming=np.ones((4, 1), bool),
    ) as stream:
        stream.next()
        stream.cancel()
        served.wait_until_idle()
