"""Beam search through the whole server: the engine model, the ensemble and the scripted chain, streaming and not."""

from collections.abc import Iterator

import numpy as np
import pytest

from inflight.executor import Beam, Executor, Request
from served import PROMPT, Served

WIDTH = 3
FIELDS = dict(max_tokens=10, beam_width=WIDTH, length_penalty=0.5)


@pytest.fixture(scope="module")
def beam_server(start) -> Iterator[Served]:
    with start(max_beam_width=4, decoding_mode="beam_search") as served:
        yield served


@pytest.fixture(scope="module")
def beams(engine_dir, tokenizer) -> list[Beam]:
    """Of PROMPT, by the executor."""
    with Executor(engine_dir, max_beam_width=4) as executor:
        prompt = tokenizer.encode(PROMPT, True)
        (result,) = executor.submit(Request(prompt, end_id=tokenizer.end_id, log_probs=True, **FIELDS))
    assert len(result.beams) == WIDTH
    return result.beams


@pytest.fixture
def inputs(tokenizer) -> dict:
    prompt = tokenizer.encode(PROMPT, True)
    return {
        "input_ids": prompt,
        "input_lengths": len(prompt),
        "request_output_len": 10,
        "end_id": tokenizer.end_id,
        "beam_width": WIDTH,
        "len_penalty": 0.5,
        "exclude_input_in_output": True,
        "return_log_probs": True,
    }


def rows(outputs: dict[str, np.ndarray]) -> list[list[int]]:
    """The tokens of each beam; what lies behind a shorter one must be -1."""
    (ids,), (lengths,) = outputs["output_ids"], outputs["sequence_length"]
    assert all((row[length:] == -1).all() for row, length in zip(ids, lengths, strict=True))
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


def test_engine_model_gives_the_beams_of_the_executor(beam_server, inputs, beams):
    with beam_server.stream("tensorrt_llm", **inputs) as stream:
        (response,) = stream
    assert rows(response.outputs) == [beam.tokens for beam in beams]
    assert np.allclose(response.outputs["cum_log_probs"][0], [beam.cum_log_prob for beam in beams], atol=1e-5)
    log_probs = response.outputs["output_log_probs"]
    assert log_probs.shape == (1, WIDTH, max(len(beam.tokens) for beam in beams))
    for found, beam in zip(log_probs[0], beams, strict=True):
        assert np.allclose(found[: len(beam.tokens)], beam.log_probs, atol=1e-5)


def test_streaming_sends_whole_beams(beam_server, inputs, beams):
    with beam_server.stream("tensorrt_llm", **inputs, streaming=True) as stream:
        responses = list(stream)
    lengths = [max(len(row) for row in rows(response.outputs)) for response in responses]
    assert lengths == list(range(1, 1 + len(responses))) and len(responses) > 5
    assert rows(responses[-1].outputs) == [beam.tokens for beam in beams]


def test_generation_logits_of_all_beams(beam_server, inputs, beams):
    with beam_server.stream("tensorrt_llm", **inputs, return_generation_logits=True) as stream:
        (response,) = stream
    logits = response.outputs["generation_logits"]
    assert logits.shape[:3] == (1, WIDTH, max(len(beam.tokens) for beam in beams))
    rows_of_best = logits[0, 0, 1:].astype(
        np.float64
    )  # the first one's log probs lack the end id, which may not come yet
    log_probs = rows_of_best - np.logaddexp.reduce(rows_of_best, axis=-1, keepdims=True)
    taken = log_probs[range(len(beams[0].tokens) - 1), beams[0].tokens[1:]]
    assert np.allclose(taken, beams[0].log_probs[1:], atol=1e-4)


def test_rows_of_a_batch_have_widths_of_their_own(beam_server, inputs):
    two = {name: np.repeat(np.array([value]).reshape(1, -1), 2, axis=0) for name, value in inputs.items()}
    types = {"len_penalty": np.float32, "exclude_input_in_output": bool, "return_log_probs": bool}
    two = {name: array.astype(types.get(name, np.int32)) for name, array in two.items()}
    two["beam_width"][:, 0] = [1, 2]
    with beam_server.stream("tensorrt_llm", **two) as stream:
        found = {int(r.outputs["batch_index"].flat[0]): len(rows(r.outputs)) for r in stream}
    assert found == {0: 1, 1: 2}


@pytest.mark.parametrize("model", ["ensemble", "inflight_text", "tensorrt_llm_bls"])
@pytest.mark.parametrize("stream", [False, True])
def test_text_models_give_one_text_a_beam(beam_server, tokenizer, beams, model, stream):
    with beam_server.stream(model, exclude_input_in_output=True, stream=stream, **FIELDS) as answer:
        responses = [response for response in answer if "text_output" in response.outputs]
    assert len(responses) > 5 if stream else len(responses) == 1
    texts = responses[-1].outputs["text_output"].reshape(-1).tolist()
    assert [text.decode() for text in texts] == [tokenizer.decode(beam.tokens, True) for beam in beams]


@pytest.mark.parametrize("value", [True, 1])
def test_early_stopping_may_be_declared_as_either_type(start, inputs, value):
    def declare(repository):
        wanted = 'name: "early_stopping" data_type: TYPE_INT32'
        declaring = [path for path in repository.glob("*/config.pbtxt") if wanted in path.read_text()]
        assert any(path.parent.name == "tensorrt_llm" for path in declaring)
        for path in declaring if value is True else ():
            path.write_text(path.read_text().replace(wanted, wanted.replace("INT32", "BOOL")))

    with start(max_beam_width=4, edit=declare) as served, served.stream("tensorrt_llm", **inputs) as stream:
        (plain,) = stream
        with served.stream("tensorrt_llm", **inputs, early_stopping=value) as again:
            (response,) = again
    assert rows(response.outputs) == rows(plain.outputs)


def test_too_wide_is_refused_with_both_numbers(beam_server, inputs):
    text = beam_server.refusal(**{**inputs, "beam_width": 5})
    assert text == "beam_width is 5, wanted 1 to max_beam_width 4"
    text = beam_server.refusal(**inputs, num_return_sequences=2)
    assert text.startswith("num_return_sequences is 2 with beam_width 3, wanted 1")


def test_cancelled_beams_leave_nothing(beam_server, inputs):
    with beam_server.stream("tensorrt_llm", **{**inputs, "request_output_len": 800}, streaming=True) as stream:
        stream.next()
        stream.cancel()
    beam_server.wait_until_idle()


def test_widths_may_differ_between_requests_in_flight(beam_server, inputs, beams):
    streams = [beam_server.stream("tensorrt_llm", **{**inputs, "beam_width": width}) for width in (1, 2, 3, 4, 3)]
    found = [rows(next(iter(stream)).outputs) for stream in streams]
    for stream in streams:
        stream.close()
    assert [len(it) for it in found] == [1, 2, 3, 4, 3]
    assert found[2] == found[4] == [beam.tokens for beam in beams]
