"""A python model that asks the engine model and takes no more of its responses: the server waits in each of them."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from served import becomes
from test_faults import stubs_of

LONG = 900
PROMPT_IDS = [5, 6, 7]
HANGING = 2


def only_the_engine_and_a_relay(repository):
    for model in repository.iterdir():
        if model.name != "tensorrt_llm":
            shutil.rmtree(model)
    shutil.copytree(Path(__file__).parent / "relay", repository / "relay")


@pytest.fixture(scope="module")
def relayed(start):
    with start(edit=only_the_engine_and_a_relay, stats_check_period_ms=20) as served:
        yield served


def relay(served):
    inputs = {"input_ids": PROMPT_IDS, "input_lengths": len(PROMPT_IDS), "request_output_len": LONG, "streaming": True}
    return served.stream("relay", **inputs)


def leave_a_stream(served):
    """A client that goes away is seen although others hang."""
    before = served.sample("requests_cancelled")
    with served.stream_tokens(PROMPT_IDS, LONG, streaming=True) as stream:
        stream.next()
        stream.cancel()
        becomes(before + 1, lambda: served.sample("requests_cancelled"))


def test_others_go_on_while_streams_of_a_stopped_model_hang(relayed, greedy):
    expected = greedy(PROMPT_IDS, LONG)
    streams = [relay(relayed) for _ in range(HANGING)]
    begun = [[stream.next() for _ in range(3)] for stream in streams]
    (stub,) = stubs_of(relayed, "relay")
    os.kill(stub, signal.SIGSTOP)
    try:
        (whole,) = relayed.ask_tokens(PROMPT_IDS, 20)
        assert whole.tokens == expected[:20]
        leave_a_stream(relayed)
        assert relayed.sample("response_delivery_seconds") > 10
    finally:
        os.kill(stub, signal.SIGCONT)
    for stream, first in zip(streams, begun, strict=True):
        with stream:
            assert [token for response in [*first, *stream] for token in response.tokens] == expected
    relayed.shows(0, "response_delivery_seconds")
    relayed.settle()
