"""tensorrt_llm_bls: stop words in the text, accumulated text, many streams, cancellation, refusals."""

import queue

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from served import ENDLESS, PATIENCE_S, PROMPT, tensor

BLS = "tensorrt_llm_bls"


@pytest.fixture(scope="module")
def text(greedy_text):
    """What follows PROMPT."""
    return greedy_text(PROMPT, 60)


@pytest.fixture(scope="module")
def word(text, tokenizer):
    """A word that the answer says in the midst of its tokens: no token sequence stands for it alone."""
    word = text[41:47]
    assert text.find(word) == 41
    assert tokenizer.encode(word, False) != tokenizer.encode(text, False)
    return word


def responses(served, **inputs):
    with served.stream(BLS, **{"max_tokens": 60, **inputs}) as stream:
        found = list(stream)
        assert stream.is_silent()
    assert found[-1].error is None, found[-1].error
    assert [response.final for response in found] == [False] * (len(found) - 1) + [True]
    assert all(response.outputs for response in found), "no response is there for its flag alone"
    return found


def test_stop_word_over_several_chunks(endless, text, word):
    """The engine must not go on."""
    found = responses(endless, stop_words=[word], max_tokens=ENDLESS, ignore_eos=True)
    assert "".join(response.text for response in found) == text[:47]
    assert sum(len(response.text) > 0 for response in found[-len(word) :]) > 1, "the word came in one chunk"
    assert [response.outputs["finish_reason"].item() for response in found] == [b""] * (len(found) - 1) + [b"stop"]


def test_stop_word_cuts_a_whole_answer(served, text, word):
    (found,) = responses(served, stop_words=["never said", word], stream=False)
    assert found.text == text[:47]
    assert found.outputs["finish_reason"].item() == b"stop"


def test_stop_words_of_the_prompt_do_not_count(served, text, word):
    (found,) = responses(served, stop_words=["read_file", word], stream=False, exclude_input_in_output=False)
    assert found.text == PROMPT + text[:47]


def test_stop_words_of_rows(served, greedy_text, word):
    """Each row has its own words; the others go on."""
    prompts = [PROMPT, PROMPT, "import os\n"]
    whole = [greedy_text(prompt, 60) for prompt in prompts]
    end = whole[2].index(whole[2][20:24]) + 4
    words = [[word, ""], ["never said", ""], ["", whole[2][20:24]]]
    inputs = {
        "text_input": np.array([[prompt.encode()] for prompt in prompts], object),
        "max_tokens": np.full((3, 1), 60, np.int32),
        "stop_words": np.array([[it.encode() for it in row] for row in words], object),
        "stream": np.ones((3, 1), bool),
    }
    said = ["", "", ""]
    for response in responses(served, **inputs):
        said[response.outputs["batch_index"].item()] += response.text
    assert said == [whole[0][:47], whole[1], whole[2][:end]]


def test_stop_words_of_sequences(served):
    options = {"num_return_sequences": 3, "top_k": 40, "seed": 5}
    texts = {0: "", 1: "", 2: ""}
    for response in responses(served, **options):
        texts[response.outputs["sequence_index"].item()] += response.text
    word = texts[1][20:26]
    expected = {index: text[: text.find(word) + 6] if word in text else text for index, text in texts.items()}
    assert expected != texts
    found = {0: "", 1: "", 2: ""}
    for response in responses(served, stop_words=[word], **options):
        found[response.outputs["sequence_index"].item()] += response.text
    assert found == expected


def test_single_response_model(single, text, word):
    outputs = single.infer(BLS, text_input=PROMPT, max_tokens=60, stop_words=[word])
    assert outputs["text_output"].item().decode() == text[:47]


def test_single_response_model_serves_several_at_once(single, text):
    """A short request overtakes a long one, which one instance would not allow if it worked on one at a time."""
    answers = queue.SimpleQueue()
    with grpc.InferenceServerClient(single.server.grpc_url) as client:
        for count in (900, 60):
            inputs = [tensor("text_input", PROMPT), tensor("max_tokens", count), tensor("ignore_eos", True)]
            client.async_infer(BLS, inputs, lambda result, error: answers.put((result, error)))
        found = [answers.get(timeout=PATIENCE_S) for _ in range(2)]
    assert [error for _, error in found] == [None, None]
    texts = [result.as_numpy("text_output").item().decode() for result, _ in found]
    assert texts[0] == text
    assert texts[1].startswith(text)
    assert texts[1] != text


def test_cancelled_answer_that_is_not_streamed(endless):
    with endless.stream(BLS, max_tokens=ENDLESS, stream=False, ignore_eos=True) as stream:
        endless.wait_until_active()
        stream.cancel()
        endless.wait_until_idle()


def test_cancelled_answer_of_a_single_response_model(start, long_engine_dir):
    with (
        start(engine=long_engine_dir, decoupled_mode=False, stats_check_period_ms=20) as single,
        grpc.InferenceServerClient(single.server.grpc_url) as client,
    ):
        inputs = [tensor("text_input", PROMPT), tensor("max_tokens", ENDLESS), tensor("ignore_eos", True)]
        pending = client.async_infer(BLS, inputs, callback=lambda result, error: None)
        single.wait_until_active()
        pending.cancel()
        single.wait_until_idle()
        single.settle()
        assert single.sample("iteration_counter") < ENDLESS


def test_32_plain_streams_see_the_final_flag(served, greedy_text):
    """On one connection, without asking for empty responses: as most clients do."""
    answers = queue.SimpleQueue()
    text = greedy_text(PROMPT, 40)
    inputs = [tensor("text_input", PROMPT), tensor("max_tokens", 40), tensor("stream", True)]
    with grpc.InferenceServerClient(served.server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index in range(32):
            client.async_stream_infer(BLS, inputs, request_id=str(index))
        said, open_streams = dict.fromkeys(map(str, range(32)), ""), 32
        while open_streams:
            result, error = answers.get(timeout=PATIENCE_S)
            assert error is None, error
            message = result.get_response()
            said[message.id] += result.as_numpy("text_output").item().decode()
            open_streams -= message.parameters["triton_final_response"].bool_param
    assert set(said.values()) == {text}


@pytest.fixture(scope="module")
def accumulating(start):
    with start(accumulate_tokens=True) as served:
        yield served


def test_accumulated_text(accumulating, text, word):
    found = responses(accumulating, stop_words=[word])
    texts = [response.text for response in found]
    assert texts[-1] == text[:47]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert len(texts) > 10


@pytest.mark.parametrize("model", ["ensemble", BLS])
def test_inputs_of_our_own_reach_the_engine(single, model):
    plain = {"text_input": PROMPT, "max_tokens": 8}
    for name, value in {"priority": 0.9, "min_p": 0.1, "ignore_eos": True, "no_repeat_ngram_size": 3}.items():
        assert single.infer(model, **plain, **{name: value})["finish_reason"].item() in (b"length", b"stop")
    with pytest.raises(InferenceServerException, match="input priority is 2; wanted 0 to 1"):
        single.infer(model, **plain, priority=2.0)
