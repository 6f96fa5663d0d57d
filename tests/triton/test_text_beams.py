"""Beam search in the model with texts: what the ensemble answers, tensor by tensor, and stop words in the texts."""

from collections.abc import Iterator

import numpy as np
import pytest

from served import Served

WIDTH = 3
FIELDS = dict(max_tokens=10, beam_width=WIDTH, length_penalty=0.5)
SWITCHES = {f"return_{name}": True for name in ("log_probs", "generation_logits", "context_logits")}
COUNTS = {f"return_{name}": True for name in ("num_input_tokens", "num_output_tokens")}


@pytest.fixture(scope="module")
def beam_server(start) -> Iterator[Served]:
    with start(max_beam_width=4) as served:
        yield served


def answers(served: Served, model: str, **fields) -> list[dict[str, np.ndarray]]:
    """The outputs of each response."""
    with served.stream(model, **FIELDS | fields) as stream:
        responses = list(stream)
    assert [response.error for response in responses] == [None] * len(responses)
    return [response.outputs for response in responses if response.outputs]


def texts(outputs: dict[str, np.ndarray]) -> list[str]:
    return [text.decode() for text in outputs["text_output"].reshape(-1).tolist()]


def expect_equal(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert mine.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (mine[name].dtype, mine[name].shape) == (array.dtype, array.shape), name
        if array.dtype.kind == "f":
            assert np.allclose(mine[name], array, atol=1e-4), name
        else:
            assert mine[name].tolist() == array.tolist(), name


ASKED = {
    "texts alone": {},
    "all outputs": SWITCHES | COUNTS,
    "prompt in the output": {"exclude_input_in_output": False, "return_log_probs": True},
    "other rules": {"early_stopping": 0, "beam_search_diversity_rate": 0.4, "repetition_penalty": 1.3, "min_tokens": 4},
    "words": {"bad_words": ["return"], "stop_words": ["def", " import"], "return_log_probs": True},
    "words after some tokens": {"stop_words": [" import", " file", " io"], "min_tokens": 6},
    "one beam": {"beam_width": 1, "return_log_probs": True},
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("stream", [False, True])
def test_the_ensembles_answer(beam_server, asked, stream):
    fields = {"exclude_input_in_output": True, "stream": stream, **ASKED[asked]}
    expected = answers(beam_server, "ensemble", **fields)
    found = answers(beam_server, "inflight_text", **fields)
    assert len(found) == len(expected) and (len(found) > 3 if stream else len(found) == 1)
    for mine, theirs in zip(found, expected, strict=True):
        if "stop_words" in fields and mine is not found[-1]:  # the beginning of one may be held back
            assert all(map(str.startswith, texts(theirs), texts(mine)))
            mine["text_output"] = theirs["text_output"]
        expect_equal(mine, theirs)
    if "stop_words" in fields:
        assert any(text.endswith(tuple(fields["stop_words"])) for text in texts(found[-1])), texts(found[-1])
    if asked != "one beam":
        assert len(texts(found[-1])) == WIDTH and len(set(texts(found[-1]))) > 1


def test_stop_words_that_tokens_cut_end_a_beams_text(beam_server):
    """Each beam for itself; log probs and counts are those of the tokens that the text is made of."""
    (whole,) = answers(beam_server, "inflight_text", stream=False, **COUNTS, return_log_probs=True)
    best = texts(whole)[0]
    stop = best[len(best) // 2 - 1 : len(best) // 2 + 2]
    expected = [text[: text.index(stop) + len(stop)] if stop in text else text for text in texts(whole)]
    for stream in (False, True):
        asked = {"stream": stream, "stop_words": [stop], "return_log_probs": True, **COUNTS}
        *_, last = answers(beam_server, "inflight_text", **asked)
        assert texts(last) == expected
        assert last["finish_reason"].item() == b"stop"
        kept = int(last["num_output_tokens"].item())
        assert kept < whole["num_output_tokens"].item()
        log_probs = last["output_log_probs"].reshape(WIDTH, -1)
        assert np.allclose(log_probs[0, :kept], whole["output_log_probs"].reshape(WIDTH, -1)[0, :kept], atol=1e-5)
        assert np.isclose(last["cum_log_probs"].reshape(-1)[0], log_probs[0, :kept].sum(), atol=1e-4)


def test_a_search_of_the_wrong_width_is_refused(beam_server):
    assert beam_server.refusal("inflight_text", beam_width=5) == "beam_width is 5, wanted 1 to max_beam_width 4"


def test_rows_have_widths_of_their_own(beam_server):
    prompts = np.array([["def add(a, b):"], ["x = "]], object)
    columns = {"max_tokens": np.full((2, 1), 6, np.int32), "beam_width": np.array([[2], [3]], np.int32)}
    with beam_server.stream("inflight_text", text_input=prompts, stream=np.zeros((2, 1), bool), **columns) as stream:
        found = {int(r.outputs["batch_index"].item()): len(texts(r.outputs)) for r in stream}
    assert found == {0: 2, 1: 3}


def test_cancelled_beams_leave_nothing(beam_server):
    with beam_server.stream("inflight_text", max_tokens=800, beam_width=WIDTH, stream=True) as stream:
        stream.next()
        stream.cancel()
    beam_server.wait_until_idle()
