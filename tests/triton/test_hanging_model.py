"""A python model that asks the engine model and takes no more of its responses: the server waits in the next one."""

import os
import shutil
from pathlib import Path

import pytest

from served import ENDLESS, becomes

LONG = 900
PROMPT_IDS = [5, 6, 7]


def only_the_engine_and_a_relay(repository):
    for model in repository.iterdir():
        if model.name != "tensorrt_llm":
            shutil.rmtree(model)
    shutil.copytree(Path(__file__).parent / "relay", repository / "relay")
    os.mkfifo(repository / "relay" / "gate")


@pytest.fixture(scope="module")
def relayed(start, long_engine_dir):
    with start(engine=long_engine_dir, edit=only_the_engine_and_a_relay, stats_check_period_ms=20) as served:
        yield served


def relay(served):
    inputs = {"input_ids": PROMPT_IDS, "input_lengths": len(PROMPT_IDS), "request_output_len": LONG, "streaming": True}
    return served.stream("relay", **inputs)


def delivery_seconds(served):
    return served.sample("response_delivery_seconds")


def open_gate(served):
    """Raises OSError when the model does not wait there."""
    os.close(os.open(served.server.repository / "relay" / "gate", os.O_WRONLY | os.O_NONBLOCK))


def leave_a_stream(served):
    before = served.sample("requests_cancelled")
    with served.stream_tokens(PROMPT_IDS, ENDLESS, streaming=True) as stream:
        stream.next()
        stream.cancel()
        becomes(before + 1, lambda: served.sample("requests_cancelled"))


def test_others_go_on_while_the_stream_of_a_model_that_hangs_waits(relayed, greedy):
    expected = greedy(PROMPT_IDS, LONG)
    with relay(relayed) as stream:
        try:
            becomes(True, lambda: delivery_seconds(relayed) > 1)
            (whole,) = relayed.ask_tokens(PROMPT_IDS, 20)
            assert whole.tokens == expected[:20]
            leave_a_stream(relayed)
            assert delivery_seconds(relayed) > 10
        finally:
            open_gate(relayed)
        assert [token for response in stream for token in response.tokens] == expected
    relayed.shows(0, "response_delivery_seconds")
    relayed.settle()
