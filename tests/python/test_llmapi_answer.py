"""From the llmapi model's tensors through the executor to its outputs, without a server."""

import numpy as np
import pytest

from inflight.executor import Executor, ExecutorError
from inflight.serve.live_requests import LiveRequests
from inflight.serve.llmapi_answer import Answers
from inflight.serve.llmapi_request import read_order
from inflight.tokenizer import Tokenizer

PROMPT = "def read_file(path):\n    "
ENDLESS = 16000  # tokens of long_7m; takes a minute


@pytest.fixture(scope="module")
def tokenizer(python_7m):
    return Tokenizer.from_folder(python_7m)


@pytest.fixture(scope="module")
def executor(long_7m):
    with Executor(long_7m, num_threads=1) as shared:
        yield shared


@pytest.fixture
def begin(executor, tokenizer):
    """begin(max_tokens, **inputs): the answers to PROMPT, and the handle that brings them."""

    def begun(max_tokens, **inputs):
        arrays = {
            "text_input": np.array([PROMPT.encode()], object),
            "sampling_param_max_tokens": np.array([max_tokens], np.int32),
            **{name: np.array(value) for name, value in inputs.items()},
        }
        order = read_order(arrays, tokenizer, decoupled=True)
        return Answers(tokenizer, order, tokens_per_block=32), executor.submit(order.request)

    return begun


def texts(responses):
    return [it["text_output"].item().decode() for it in responses]


def test_stop_word_ends_the_work(begin, executor):
    answers, handle = begin(60)
    (whole,) = texts(answers.responses(handle))
    before = executor.stats()["steps"]
    answers, handle = begin(ENDLESS, sampling_param_stop=[whole[len(PROMPT) + 40 :][:6].encode()])
    assert texts(answers.responses(handle)) == [whole[: len(PROMPT) + 40]]
    assert answers.ended
    with pytest.raises(ExecutorError, match="cancelled"):
        list(handle)
    assert executor.stats()["steps"] - before < ENDLESS / 2


def test_sequence_that_ends_first_waits_for_the_others(begin, tokenizer):
    inputs = {"sampling_param_best_of": [3], "sampling_param_top_k": [40], "sampling_param_seed": [5]}
    answers, handle = begin(40, **inputs)
    results = list(handle)
    pieces = [tokenizer.decode(it.tokens) for it in sorted(results, key=lambda it: it.sequence_index)]
    word = pieces[1][10:16]
    assert [word in piece for piece in pieces] == [False, True, False]
    answers, handle = begin(40, sampling_param_stop=[word.encode()], **inputs)
    (response,) = answers.responses(handle)
    likeliest = max(range(3), key=lambda index: answers._sequences[index].last.cum_log_prob)
    assert texts([response]) == [PROMPT + pieces[likeliest].partition(word)[0]]
    assert {len(it.text) for it in answers._sequences} == {len(PROMPT + it.partition(word)[0]) for it in pieces}


def test_leaving_early_ends_the_work(begin):
    answers, handle = begin(ENDLESS, streaming=[True])
    responses = answers.responses(handle)
    next(responses)
    responses.close()
    with pytest.raises(ExecutorError, match="cancelled"):
        list(handle)


class Recorder:
    def __init__(self):
        self.cancels = 0

    def cancel(self):
        self.cancels += 1


def test_stopping_by_id():
    requests = LiveRequests()
    first, second, other, nameless = (requests.open(id_) for id_ in ("a", "a", "b", ""))
    handles = [Recorder() for _ in range(4)]
    for live, handle in zip((first, other, nameless), handles[1:], strict=True):
        live.attach(handle)
    requests.stop("a")
    second.attach(handles[0])  # submitted only now
    assert [it.cancels for it in handles] == [1, 1, 0, 0]
    requests.close("a", first)
    requests.close("a", second)
    requests.stop("a")
    requests.stop("")
    assert [it.cancels for it in handles] == [1, 1, 0, 0]
