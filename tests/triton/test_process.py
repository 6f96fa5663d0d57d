"""The server as a process: what it costs when idle, how its memory grows, how it ends."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from served import ENDLESS, PATIENCE_S, becomes

TICKS = os.sysconf("SC_CLK_TCK")
LONG = 400
PERIOD_S = 3
ROUNDS = 12
LEAK = 2 << 20  # in two rounds: 5 KiB a request


def test_idle_server_uses_no_processor(served):
    """A period without work comes soon; a thread that polls or spins is never at rest."""
    served.text()
    served.wait_until_idle()

    def is_at_rest():
        before = served.processor_times()
        time.sleep(PERIOD_S)
        used = {pid: ticks - before.get(pid, 0) for pid, ticks in served.processor_times().items()}
        shares = {pid: ticks / TICKS / PERIOD_S for pid, ticks in used.items()}
        return shares[served.server.pid] < 0.01 and sum(shares.values()) < 0.04  # with the Python processes

    becomes(True, is_at_rest)


def test_memory_stays_flat(served):
    """Allocators take pages when they like, but not in every round; a leak does."""

    def memory_after(count):
        with ThreadPoolExecutor(8) as pool:
            texts = set(pool.map(lambda _: served.text(max_tokens=4, stop_words=["unlikely"]), range(count)))
            assert len(texts) == 1
        served.wait_until_idle()
        return sum(served.memory_of_processes().values())

    sizes = []
    while len(sizes) < 3 or sizes[-1] - sizes[-3] >= LEAK:
        assert len(sizes) < ROUNDS, sizes
        sizes.append(memory_after(200))


def test_defaults_of_unfilled_parameters(served):
    """The templates were filled with the few values that a server needs."""
    log = served.server.log.read_text()
    (names,) = re.findall(r"tensorrt_llm: parameters left unfilled, their defaults are used: ([\w, ]+)", log)
    assert {"max_beam_width", "decoding_mode", "encoder_model_path", "max_num_tokens"} <= set(names.split(", "))
    config = served.get("/v2/models/tensorrt_llm/config").json
    assert config["parameters"]["max_num_tokens"]["string_value"] == "${max_num_tokens}"


def text_of(stream):
    return "".join(response.text for response in stream)


def tokens_of(stream):
    return [token for response in stream for token in response.tokens]


@pytest.mark.parametrize("order", [signal.SIGTERM, signal.SIGINT])
def test_end_by_signal(start, greedy, order):
    """What is under way gets its answer, streamed or not; the process ends by itself."""
    with start(arguments=["--exit-timeout-secs=120"], stats_check_period_ms=20) as served:
        expected = served.text("inflight_text", max_tokens=LONG, ignore_eos=True)
        served.settle()

        def taken():
            return served.sample('="active"') + served.sample("inflight_requests_completed_total")

        before = taken()
        texts = [
            served.stream(model, max_tokens=LONG, ignore_eos=True, stream=streaming)
            for streaming in (True, False)
            for model in ("inflight_text", "tensorrt_llm_bls")
        ]
        tokens = [served.stream_tokens([5, 6, 7], LONG, streaming=it) for it in (True, False)]
        begun = [stream.next() for stream in (*texts[:2], tokens[0])]
        becomes(before + 6, taken)
        served.server.process.send_signal(order)
        said = [response.text + text_of(stream) for response, stream in zip(begun[:2], texts[:2], strict=True)]
        assert [*said, *map(text_of, texts[2:])] == [expected] * 4
        assert begun[2].tokens + tokens_of(tokens[0]) == tokens_of(tokens[1]) == greedy([5, 6, 7], LONG)
        for stream in texts + tokens:
            stream.close()
        assert served.server.process.wait(PATIENCE_S) == 0
        assert [pid for pid in served.process_ids() if pid != served.server.pid] == []


def test_end_by_signal_of_an_ensemble(start, long_engine_dir):
    """Server 2.51 lets no model ask another once it ends: the stream stays silent, and the process ends by its exit
    time-out when the client has gone. It then calls exit() with models loaded, which without LoadedModel ends one time
    in some dozens, on a busy machine, with a corrupt heap and a process that hangs."""
    with start(arguments=["--exit-timeout-secs=2"], engine=long_engine_dir) as served:
        with served.stream("ensemble", max_tokens=ENDLESS, ignore_eos=True) as stream:
            stream.next()
            served.server.process.send_signal(signal.SIGINT)
            stream.cancel()
        assert served.server.process.wait(PATIENCE_S) in (0, 1)
