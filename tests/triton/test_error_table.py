"""The contract's table of errors, a test a row: what is wrong, the code over gRPC and HTTP, and what the text names.

Elsewhere, since a row needs more than a request: a full queue (UNAVAILABLE, 503) in test_queue.py, cancellation and
stop orders (CANCELLED) in test_cancellation.py, loads that fail in test_model_control.py, a step that fails (INTERNAL)
in tests/batcher/executor_fault_test.cpp. ALREADY_EXISTS and UNKNOWN are answers to no request.

Rows of features to come are refused as a whole (FEATURES_TO_COME) and get rows of their own with the feature: LoRA
without a task id or with an adapter that is gone; a guide type that does not exist; lookahead values of which one is
missing or above the configured; encoder inputs of a decoder-only model; context phase parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from served import PROMPT, Served, tensor

HTTP = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNIMPLEMENTED": 501, "INTERNAL": 500}
BLS = "tensorrt_llm_bls"
PLAIN = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": 4}
TEXT = {"text_input": PROMPT, "max_tokens": 4}
ROWS = np.ones((2, 1), np.int32)
TWO_ROWS = {"input_ids": ROWS, "input_lengths": ROWS, "request_output_len": ROWS}


@dataclass(frozen=True)
class Row:
    """`changes`: to a request that is right; None leaves an input out."""

    changes: dict
    text: str
    code: str = "INVALID_ARGUMENT"
    model: str = "tensorrt_llm"

    @property
    def inputs(self) -> dict:
        plain = TEXT if self.model in ("ensemble", BLS) else PLAIN
        return {name: value for name, value in {**plain, **self.changes}.items() if value is not None}


def words(*rows: list[int]) -> np.ndarray:
    return np.array([rows], np.int32)


TABLE = {
    "no prompt": Row({"input_ids": None}, "input input_ids is missing or empty; wanted at least one token"),
    "prompt of one dimension too many": Row(
        {"input_ids": np.ones((1, 1, 3), np.int32)}, "unexpected shape for input 'input_ids'"
    ),
    "prompt too long": Row(
        {"input_ids": [5] * 1100, "input_lengths": 1100}, "the prompt has 1100 tokens; this model takes at most 1023"
    ),
    "no output length": Row(
        {"request_output_len": None, "end_id": 0}, "request_output_len is not present in the request"
    ),
    "missing inputs": Row(
        {"request_output_len": None, "input_lengths": None}, "but got 1 inputs for model 'tensorrt_llm'"
    ),
    "missing input of the ensemble": Row(
        {"max_tokens": None}, "missing required input(s) ['max_tokens']", model="ensemble"
    ),
    "unknown input": Row({"surprise": 1}, "unexpected inference input 'surprise'"),
    "type": Row({"input_ids": [0.5, 0.5, 0.5]}, "data-type is 'FP32', but model 'tensorrt_llm' expects 'INT32'"),
    "rows that differ": Row(
        {"input_ids": np.ones((2, 3), np.int32)}, "batch size does not match other inputs for 'tensorrt_llm'"
    ),
    "rows without decoupled mode": Row(
        TWO_ROWS, "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy"
    ),
    "streaming without decoupled mode": Row(
        {"streaming": True}, "Streaming is only supported if model is deployed using decoupled mode."
    ),
    "words without offsets": Row({"stop_words_list": words([1, 2, 3])}, "unexpected shape for input 'stop_words_list'"),
    "falling word offsets": Row({"stop_words_list": words([1, 2, 3], [2, 1, -1])}, "wanted rising offsets"),
    "word offset behind the tokens": Row(
        {"bad_words_list": words([1, 2], [9, -1])}, "has the end offset 9; wanted at most the number of tokens, 2"
    ),
    "word offset behind the end": Row(
        {"bad_words_list": words([1, 2], [-1, 2])}, "has end offsets after the first -1; wanted -1 to the end"
    ),
    "retention ranges of unequal lengths": Row(
        {"retention_token_range_starts": [0]},
        "inputs retention_token_range_starts, _ends, _priorities and _durations_ms have 1, 0, 0 and 0 values; wanted",
    ),
    "stop without an id": Row({"stop": True}, "Trying to stop a request but request ID is not provided"),
    "draft acceptance": Row(
        {"draft_input_ids": [5], "draft_acceptance_threshold": 0.0}, "threshold is 0, wanted more than 0"
    ),
    "beams": Row({"beam_width": 2}, "beam_width is 2, wanted 1 to max_beam_width 1"),
    "error of a step of the ensemble": Row(
        {"beam_width": 2}, "beam_width is 2, wanted 1 to max_beam_width 1", model="ensemble"
    ),
    "error of the engine of another model": Row(
        {"beam_width": 2}, "beam_width is 2, wanted 1 to max_beam_width 1", model=BLS
    ),
    "no text": Row({"text_input": None}, "text_input", model=BLS),
    "no length of the answer": Row({"max_tokens": None}, "max_tokens", model=BLS),
    "length 0 of the answer": Row({"max_tokens": 0}, "max_tokens is 0; wanted 1 or more", model=BLS),
    "negative length of the answer": Row({"max_tokens": -3}, "max_tokens is -3; wanted 1 or more", model=BLS),
    "drafts without a draft model": Row(
        {"num_draft_tokens": 4},
        "num_draft_tokens is 4, but parameter tensorrt_llm_draft_model_name names no model",
        model=BLS,
    ),
    "unknown model": Row({}, "Request for unknown model: 'nothing' is not found", "NOT_FOUND", "nothing"),
}

FEATURES_TO_COME = {
    "lora_task_id": 0,
    "lora_config": np.ones((1, 2, 3), np.int32),
    "lora_weights": np.ones((1, 2, 4), np.float16),
    "guided_decoding_guide_type": "json",
    "guided_decoding_guide": "{}",
    "lookahead_window_size": 4,
    "context_phase_params": np.ones((1, 3), np.uint8),
    "encoder_input_features": np.ones((1, 2, 4), np.float16),
    "cross_attention_mask": np.ones((1, 2, 4), bool),
}
TABLE |= {
    name: Row(
        {name: value},
        f"input {name} needs a feature that this version does not support; leave it out",
        "UNIMPLEMENTED",
    )
    for name, value in FEATURES_TO_COME.items()
}


def infer_over_http(served: Served, row: Row) -> tuple[int, str]:
    inputs = []
    for name, value in row.inputs.items():
        it = tensor(name, value)
        data = np.asarray(value).flatten().tolist()
        inputs.append({"name": name, "shape": list(it.shape()), "datatype": it.datatype(), "data": data})
    answer = served.post(f"/v2/models/{row.model}/infer", {"inputs": inputs})
    return answer.status, answer.error


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_row(single, row):
    with pytest.raises(InferenceServerException) as caught:
        single.infer(row.model, **row.inputs)
    assert row.text in caught.value.message()
    assert caught.value.status() == f"StatusCode.{row.code}"
    if not any(np.asarray(value).dtype == np.float16 for value in row.inputs.values()):  # JSON has none
        status, text = infer_over_http(single, row)
        assert row.text in text
        assert status == HTTP[row.code]


def test_rows_without_lengths(served):
    """A stream carries no codes: they come on request."""
    inputs = {name: value for name, value in TWO_ROWS.items() if name != "input_lengths"}
    text = served.refusal(**inputs, end_id=ROWS, parameters={"error_codes": True})
    assert (
        text
        == "[INVALID_ARGUMENT] input_lengths is not present in the request of 2 rows; it is wanted to strip the padding"
    )


def test_requested_outputs_must_hold_the_tokens(served):
    with served.stream("tensorrt_llm", outputs=["finish_reason"], **PLAIN) as stream:
        (response,) = stream
    assert response.error == "the requested outputs lack output_ids or sequence_length; wanted both"


def test_unary_call_of_a_decoupled_model(served):
    with pytest.raises(InferenceServerException) as caught:
        served.infer("tensorrt_llm", **PLAIN)
    assert "ModelInfer RPC doesn't support models with decoupled transaction policy" in caught.value.message()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_infer_on_a_decoupled_model(served):
    status, text = infer_over_http(served, Row({}, "", model="ensemble"))
    assert status == 501
    assert "doesn't support models with decoupled transaction policy" in text


def test_several_responses_do_not_fit_into_generate(served):
    answer = served.generate(stream=True)
    assert answer.status == 200
    assert "generate expects model to produce exactly 1 response" in answer.body.decode()


GENERATE = {
    "unknown model": ({"model": "nothing"}, 404, "Request for unknown model: 'nothing' is not found"),
    "text for a number": ({"max_tokens": "many"}, 500, "Unable to parse 'data'"),
    "number for a text": ({"text_input": 5}, 500, "Unable to parse JSON bytes array"),
    "fraction for an integer": ({"max_tokens": 2.5}, 500, "Unable to parse 'data'"),
}


@pytest.mark.parametrize("case", GENERATE)
def test_generate(served, case):
    fields, status, text = GENERATE[case]
    answer = served.generate(**fields)
    assert answer.status == status
    assert text in answer.error


def test_error_in_an_event_stream(served):
    body = {"text_input": PROMPT, "max_tokens": 4, "stream": True, "temperature": -0.5}
    answer = served.post("/v2/models/ensemble/generate_stream", body)
    assert answer.status == 400
    assert answer.body.startswith(b'data: {"error":')
    assert answer.body.count(b"data:") == 1
    assert "input temperature is -0.5; wanted 0 to" in answer.body.decode()
