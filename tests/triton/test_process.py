"""The server as a process: what it costs when idle, how its memory grows, how it ends."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

TICKS = os.sysconf("SC_CLK_TCK")
LONG = 400


def test_idle_server_uses_no_processor(served):
    served.text()
    served.wait_until_idle()
    before = served.processor_times()
    time.sleep(3)
    after = served.processor_times()
    shares = {pid: (after[pid] - ticks) / TICKS / 3 for pid, ticks in before.items()}
    assert shares[served.server.pid] < 0.01, shares
    assert sum(shares.values()) < 0.04, shares  # with the server's Python processes


def test_memory_stays_flat(served):
    def ask(count):
        with ThreadPoolExecutor(8) as pool:
            texts = set(pool.map(lambda _: served.text(max_tokens=4, stop_words=["unlikely"]), range(count)))
            assert len(texts) == 1
        served.wait_until_idle()
        return sum(served.memory_of_processes().values())

    warm = ask(200)
    assert ask(400) - warm < 12 << 20


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
    with start(arguments=["--exit-timeout-secs=20"], stats_check_period_ms=20) as served:
        expected = served.text("inflight_text", max_tokens=LONG, ignore_eos=True)
        texts = [served.stream("inflight_text", max_tokens=LONG, ignore_eos=True, stream=it) for it in (True, False)]
        tokens = [served.stream_tokens([5, 6, 7], LONG, streaming=it) for it in (True, False)]
        begun = [stream.next() for stream in (texts[0], tokens[0])]
        served.wait_until_active(4)
        served.server.process.send_signal(order)
        assert begun[0].text + text_of(texts[0]) == text_of(texts[1]) == expected
        assert begun[1].tokens + tokens_of(tokens[0]) == tokens_of(tokens[1]) == greedy([5, 6, 7], LONG)
        for stream in texts + tokens:
            stream.close()
        assert served.server.process.wait(20) == 0
        assert [pid for pid in served.process_ids() if pid != served.server.pid] == []


def test_end_by_signal_of_models_that_ask_others(start):
    """Server 2.51 lets no model ask another once it ends: a script's stream ends with an error, an ensemble's stays
    silent; the process ends by its exit time-out when their clients have gone."""
    with start(arguments=["--exit-timeout-secs=2"]) as served:
        scripted, chained = (
            served.stream(model, max_tokens=LONG, ignore_eos=True) for model in ("tensorrt_llm_bls", "ensemble")
        )
        with scripted, chained:
            for stream in (scripted, chained):
                stream.next()
            served.server.process.send_signal(signal.SIGINT)
            assert list(scripted)[-1].error.endswith("Server not ready")
            for stream in (scripted, chained):
                stream.cancel()
        assert served.server.process.wait(20) in (0, 1)
