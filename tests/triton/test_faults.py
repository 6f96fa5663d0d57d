"""Faults around a live server: clients that do not read, helpers that are killed."""

import json
import os
import signal
import socket
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from served import PROMPT, becomes

MANY = 300
LONG = 3000  # takes some seconds, and ends
READERS = 8
SMALL_WINDOW = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]


def endless_request(served):
    request = service_pb2.ModelInferRequest(model_name="tensorrt_llm")
    values = {"input_ids": [5, 6, 7], "input_lengths": [3], "request_output_len": [MANY], "streaming": [True]}
    for name, value in values.items():
        array = np.array([value], bool if name == "streaming" else np.int32)
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = name, "BOOL" if name == "streaming" else "INT32"
        tensor.shape.extend(array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def test_clients_that_never_read_a_grpc_stream(served, greedy):
    """The engine goes on to the end, nobody else waits, and what is kept is no more than the answers."""
    expected = greedy([5, 6, 7], MANY)
    for stream in [served.stream_tokens([5, 6, 7], MANY, streaming=True) for _ in range(READERS)]:
        with stream:  # until memory for the tokens themselves is there
            assert list(stream)[-1].final
    served.settle()
    before, done = served.server_memory(), served.sample("requests_completed")
    with grpc.insecure_channel(served.server.grpc_url, SMALL_WINDOW) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelStreamInfer(iter([endless_request(served)])) for _ in range(READERS)]
        (response,) = served.ask_tokens([5, 6, 7], 20)
        assert response.tokens == expected[:20]
        becomes(done + READERS + 1, lambda: served.sample("requests_completed"))
        assert served.server_memory() - before < 32 << 20
        late_reader = [np.frombuffer(it.infer_response.raw_output_contents[0], np.int32)[0] for it in calls[0]]
        assert late_reader == expected
        for call in calls:
            call.cancel()


def test_clients_that_never_read_an_http_stream(served, greedy_text):
    body = json.dumps({"text_input": PROMPT, "max_tokens": 400, "stream": True, "ignore_eos": True}).encode()
    path = "/v2/models/ensemble/generate_stream"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    sockets = []
    for _ in range(4):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", served.server.ports.http))
        connection.sendall(head + body)
        sockets.append(connection)
    assert served.text() == greedy_text(PROMPT)
    served.wait_until_idle()
    for connection in sockets:
        connection.close()


def stubs_of(served, model):
    """Process of the python backend that runs a model."""
    found = [
        pid for pid in served.process_ids() if f"/models/{model}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert found, f"no process of {model}"
    return found


@pytest.fixture(scope="module")
def fragile(start, long_engine_dir):
    arguments = ["--exit-timeout-secs=2", "--model-control-mode=explicit", "--load-model=*"]
    with start(arguments=arguments, engine=long_engine_dir, stats_check_period_ms=20) as served:
        yield served


def reload(served, model):
    """As an operator does it."""
    assert served.unload(model).status == 200
    assert served.load(model).status == 200


def wait_until_text(served, model, expected):
    """For the models that ask the reloaded one: the server loads an ensemble anew, too."""
    becomes(True, lambda: served.get(f"/v2/models/{model}/ready").status == 200)
    with served.stream(model) as stream:
        assert "".join(response.text for response in stream) == expected


def test_detokenizer_process_killed_in_a_stream(fragile, greedy, greedy_text):
    """Server 2.51 starts no new process: the stream ends with an error that names it, models without it go on, and
    reloading postprocessing brings it back."""
    helper = "postprocessing"
    with fragile.stream("ensemble", max_tokens=LONG, ignore_eos=True) as stream:
        assert [stream.next().error for _ in range(3)] == [None] * 3
        for pid in stubs_of(fragile, helper):
            os.kill(pid, signal.SIGKILL)
        assert f"Stub process '{helper}_0_0' is not healthy" in list(stream)[-1].error
    assert fragile.ask_tokens([5, 6, 7])[-1].tokens == greedy([5, 6, 7])
    for model in ("inflight_text", "tensorrt_llm_bls"):
        assert fragile.text(model) == greedy_text(PROMPT)
    reload(fragile, helper)
    wait_until_text(fragile, "ensemble", greedy_text(PROMPT))
    fragile.wait_until_idle()
