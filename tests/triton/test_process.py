"""The server as a process: what it costs when idle, how its memory grows, how it ends."""

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

TICKS = os.sysconf("SC_CLK_TCK")


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


@pytest.mark.parametrize("order", [signal.SIGTERM, signal.SIGINT])
def test_end_by_signal(start, order):
    """A request that is under way gets its answer; the process ends by itself."""
    with start() as served:
        expected = served.text(max_tokens=100)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(served.text(max_tokens=100)))
        asking.start()
        time.sleep(0.05)
        began = time.monotonic()
        served.server.process.send_signal(order)
        assert served.server.process.wait(20) == 0
        assert time.monotonic() - began < 8
        asking.join()
        assert answers == [expected]
        children = [pid for pid in served.process_ids() if pid != served.server.pid]
        assert children == []
