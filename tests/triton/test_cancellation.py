"""Requests that end before their answer does: cancelled, abandoned, stopped by id, out of time."""

import json
import socket

import numpy as np

from served import ENDLESS, PATIENCE_S, PROMPT, becomes


def test_cancelled_stream_of_tokens(endless, prompts):
    before = endless.cancelled_requests()
    with endless.stream_tokens(prompts[0], ENDLESS, streaming=True) as stream:
        assert [stream.next().error for _ in range(3)] == [None] * 3
        stream.cancel()
        endless.wait_until_idle()
    becomes(before + 1, endless.cancelled_requests)


def test_cancelled_answer_without_streaming(endless, prompts):
    before = endless.cancelled_requests()
    with endless.stream_tokens(prompts[0], ENDLESS) as stream:
        endless.wait_until_active()
        stream.cancel()
        endless.wait_until_idle()
    becomes(before + 1, endless.cancelled_requests)


def test_cancelled_stream_of_tensorrt_llm_bls(endless):
    cancel_text(endless, "tensorrt_llm_bls", ENDLESS)


def test_cancelled_stream_of_ensemble_text(served):
    """The server (2.51) does not tell the engine model: it goes on to the end, and then all is well."""
    cancel_text(served, "ensemble", 900)


def cancel_text(served, model, max_tokens):
    with served.stream(model, max_tokens=max_tokens, ignore_eos=True) as stream:
        assert [stream.next().error for _ in range(3)] == [None] * 3
        stream.cancel()
        served.wait_until_idle()


def test_disconnected_http_stream_of_tensorrt_llm_bls(endless):
    disconnect(endless, "tensorrt_llm_bls", ENDLESS)


def test_disconnected_http_stream_of_ensemble_text(served):
    disconnect(served, "ensemble", 900)


def disconnect(served, model, max_tokens):
    address = ("127.0.0.1", served.server.ports.http)
    body = json.dumps({"text_input": PROMPT, "max_tokens": max_tokens, "stream": True, "ignore_eos": True}).encode()
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        head = f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        received = b""
        while received.count(b"data:") < 3:
            received += connection.recv(4096)
    served.wait_until_idle()


def test_disconnects_of_many(endless, prompts):
    streams = [endless.stream_tokens(prompt[:50], ENDLESS, streaming=True) for prompt in prompts[:16]]
    for stream in streams:
        stream.next()
    for stream in streams:
        stream.cancel()
    endless.wait_until_idle()
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
        assert len(others) < ENDLESS - 1
        assert (last.final, last.error, last.outputs) == (True, None, {})
        assert stream.is_silent()


def test_stop_by_id(endless, greedy, prompts):
    with (
        endless.stream_tokens(prompts[0], ENDLESS, streaming=True, request_id="stop me") as stream,
        endless.stream_tokens(prompts[1], 60, request_id="not me") as other,
    ):
        stream.next()
        (answer,) = stop(endless, "stop me")
        assert (answer.final, answer.error, answer.outputs) == (True, None, {})
        require_end(stream)
        (untouched,) = other
        assert untouched.tokens == greedy(prompts[1], 60)


def test_stop_by_an_id_that_several_share(endless, prompts):
    streams = [endless.stream_tokens(prompts[0], ENDLESS, streaming=True, request_id="twin") for _ in range(2)]
    for stream in streams:
        stream.next()
    stop(endless, "twin")
    for stream in streams:
        require_end(stream)


def test_stop_of_an_unknown_id(served):
    (answer,) = stop(served, "nobody")
    assert (answer.final, answer.error, answer.outputs) == (True, None, {})


def test_stop_that_says_no_is_a_plain_request(served, greedy, prompts):
    (response,) = served.ask_tokens(prompts[0], stop=False)
    assert response.tokens == greedy(prompts[0])


def test_timeout_ends_with_what_is_there(endless, greedy, prompts):
    for seconds in (0.2, 1, 5, 25):  # a busy machine may give no token in time
        (response,) = endless.ask_tokens(prompts[0][:10], ENDLESS, timeout=int(seconds * 1e6))
        assert response.outputs["finish_reason"].item() == b"timeout"
        if response.tokens:
            break
    assert 0 < len(response.tokens) < ENDLESS
    beginning = response.tokens[:900]
    assert beginning == greedy(prompts[0][:10], len(beginning))


def test_cancelled_batch(endless):
    column = np.ones((4, 1), np.int32)
    with endless.stream(
        "tensorrt_llm",
        input_ids=np.arange(3, 23, dtype=np.int32).reshape(4, 5),
        input_lengths=5 * column,
        request_output_len=ENDLESS * column,
        streaming=np.ones((4, 1), bool),
    ) as stream:
        stream.next()
        stream.cancel()
        endless.wait_until_idle()
