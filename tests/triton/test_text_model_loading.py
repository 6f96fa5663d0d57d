"""The text model in the server: its tokenizer processes, the executor that it shares, and its configuration."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders

from served import PATIENCE_S, PROMPT, becomes, changed

TEXT = "inflight_text"


def command_line(pid):
    """Nothing for a process that has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def workers(served):
    """Process ids of the tokenizer's processes."""
    return [pid for pid in served.process_ids() if b"inflight.tokenizer_worker" in command_line(pid)]


def test_killed_tokenizers_cost_no_request(served, greedy_text):
    """Killed again and again while 8 clients ask: every request is answered as if nothing had happened."""
    expected = greedy_text(PROMPT, 4)
    done = threading.Event()
    killed = set()

    def kill():
        while not done.is_set():
            for pid in workers(served)[:1]:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    answers, end = [], time.monotonic() + PATIENCE_S
    with ThreadPoolExecutor(8) as pool:
        while len(killed) < 3 and time.monotonic() < end:
            answers += pool.map(lambda _: served.generate(TEXT, max_tokens=4), range(50))
    done.set()
    killer.join()
    texts = [it.json.get("text_output") for it in answers]
    failures = [it.error for it in answers if it.status != 200]
    assert all("the tokenizer process" in it for it in failures), failures
    assert len(failures) <= len(killed)
    assert [text for text in texts if text is not None] == [expected] * (len(texts) - len(failures))
    assert len(killed) >= 3
    assert served.text(TEXT, max_tokens=4) == expected


def test_tokenizers_end_with_a_killed_server(start):
    with start() as served:
        served.text(TEXT)
        pids = workers(served)
        assert pids
        served.server.process.kill()
        served.server.process.wait()
        becomes([], lambda: [pid for pid in pids if b"worker" in command_line(pid)])


@pytest.fixture(scope="module")
def managed(start):
    """Nothing is loaded at the start."""
    arguments = ["--model-control-mode=explicit", "--exit-timeout-secs=2"]
    with start(arguments=arguments, stats_check_period_ms=20) as served:
        yield served


def unload(managed, model):
    assert managed.unload(model).status == 200
    becomes(True, lambda: managed.is_gone(model))


def ask(managed, expected):
    assert managed.text(TEXT) == expected


def test_serves_alone_and_again(managed, greedy_text):
    for _ in range(3):
        assert managed.load(TEXT).status == 200
        ask(managed, greedy_text(PROMPT))
        unload(managed, TEXT)
    becomes([], lambda: workers(managed))


@pytest.mark.parametrize("first", ["tensorrt_llm", TEXT])
def test_unloading_either_leaves_the_other(managed, greedy, greedy_text, first):
    second = {"tensorrt_llm": TEXT, TEXT: "tensorrt_llm"}[first]
    assert managed.load(first).status == 200
    assert managed.load(second).status == 200
    assert f"{second} shares the executor of {first}" in managed.server.log.read_text()
    ask(managed, greedy_text(PROMPT))
    unload(managed, first)
    if second == TEXT:
        ask(managed, greedy_text(PROMPT))
    else:
        (response,) = managed.ask_tokens([5, 6, 7])
        assert response.tokens == greedy([5, 6, 7])
    unload(managed, second)


@pytest.fixture
def config(managed):
    """Of the loaded text model, as the server gives it."""
    assert managed.load(TEXT).status == 200
    yield managed.get(f"/v2/models/{TEXT}/config").json
    unload(managed, TEXT)


def test_tokenizer_folder_that_is_none(managed, config, greedy_text, tmp_path):
    for folder in ("/nowhere", str(tmp_path)):
        refused = managed.load(TEXT, changed(config, tokenizer_dir=folder))
        assert refused.status == 400
        assert f"no tokenizer.json in {folder}: a fast tokenizer is wanted there" in refused.error
    refused = managed.load(TEXT, changed(config, tokenizer_python="/nowhere/python"))
    assert "the tokenizer process cannot be started: /nowhere/python" in refused.error
    refused = managed.load(TEXT, changed(config, tokenizer_dir="${tokenizer_dir}"))
    assert "parameter tokenizer_dir is not filled in" in refused.error
    ask(managed, greedy_text(PROMPT))


def test_special_tokens(managed, config, greedy, tokenizer, python_7m, tmp_path):
    """A prompt with an end token spelt out, and an output that shows it."""
    shown = changed(config, skip_special_tokens="no")
    assert managed.load(TEXT, shown).status == 200
    bias = {"embedding_bias_words": ["<|endoftext|>"], "embedding_bias_weights": [100.0]}
    assert managed.text(TEXT, max_tokens=3, end_id=-1, **bias) == "<|endoftext|>" * 3
    assert managed.load(TEXT, config).status == 200
    assert managed.text(TEXT, max_tokens=3, end_id=-1, **bias) == ""


def test_decoder_without_a_table(managed, config, python_7m, greedy, tokenizer, tmp_path):
    """It is decoded by its own library, a piece at a time."""
    backend = Library.from_file(str(python_7m / "tokenizer.json"))
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("e", "E"), decoders.CTC("a", "b")])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert managed.load(TEXT, changed(config, tokenizer_dir=str(tmp_path))).status == 200
    assert "is decoded by its own library" in managed.server.log.read_text()
    ids = greedy(tokenizer.encode(PROMPT, True), 20)
    expected = backend.decode(ids)
    assert managed.text(TEXT, max_tokens=20) == expected
    events = managed.events(TEXT, max_tokens=20)
    assert len(events) == 20
