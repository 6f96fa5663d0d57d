"""The HTTP front end: /generate, /generate_stream, and what it says to bad requests."""

import pytest

from served import PROMPT, TEXT_MODELS

MULTI_BYTE = "é€😀"


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_generate(served, greedy_text, model):
    answer = served.generate(model, max_tokens=40)
    assert answer.status == 200
    assert answer.json["text_output"] == greedy_text(PROMPT, 40)
    assert answer.json["finish_reason"] == "length"
    assert (answer.json["model_name"], answer.json["model_version"]) == (model, "1")


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_streamed_pieces_make_the_whole(served, greedy_text, model):
    events = served.events(model, max_tokens=40)
    assert len(events) == 40
    assert "".join(event["text_output"] for event in events) == greedy_text(PROMPT, 40)
    assert [event["finish_reason"] for event in events] == [""] * 39 + ["length"]


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_streamed_pieces_of_multi_byte_text(served, model):
    """Tokens are bytes here: most pieces end inside a character, and many bytes make none."""
    fields = {
        "max_tokens": 64,
        "embedding_bias_words": [MULTI_BYTE],
        "embedding_bias_weights": [100.0],
        "top_k": 50,
        "temperature": 20.0,
        "seed": 3,
    }
    whole = served.text(model, **fields)
    assert any(letter in whole for letter in MULTI_BYTE), whole
    events = served.events(model, **fields)
    assert len(events) == 64
    assert "".join(event["text_output"] for event in events) == whole


def test_prompt_of_multi_byte_text(served, greedy_text):
    prompt = f'name = "{MULTI_BYTE}"\nprint('
    assert served.text(text_input=prompt) == greedy_text(prompt)


def test_request_id_comes_back(served):
    assert served.generate(id="seven").json["id"] == "seven"
    assert "id" not in served.generate().json


REFUSED = {
    "empty prompt": ({"text_input": ""}, 400, "the prompt (text_input, QUERY) in row 0 of 1 gives 0 tokens"),
    "prompt too long": ({"text_input": "x " * 2000}, 400, "the prompt has 2001 tokens; this model takes at most 1023"),
    "no tokens": ({"max_tokens": 0}, 400, "request_output_len is 0; wanted 1 or more"),
    "beams": ({"beam_width": 2}, 400, "beam_width is 2, wanted 1 to max_beam_width 1"),
    "temperature": ({"temperature": -0.5}, 400, "input temperature is -0.5; wanted 0 to"),
    "adapter": ({"lora_task_id": 3}, 400, "input lora_task_id needs a feature that this version does not support"),
    "encoder": ({"decoder_text_input": "a"}, 400, "encoder-decoder networks, which are not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(served, case):
    fields, status, text = REFUSED[case]
    answer = served.generate(**fields)
    assert answer.status == status
    assert text in answer.error


@pytest.mark.parametrize("case", ["empty prompt", "prompt too long", "temperature"])
def test_refusals_of_a_stream(served, case):
    fields, status, text = REFUSED[case]
    answer = served.post("/v2/models/ensemble/generate_stream", {"text_input": PROMPT, "max_tokens": 8, **fields})
    assert answer.status == status
    assert answer.body.startswith(b'data: {"error":')
    assert answer.body.count(b"data:") == 1
    assert text in answer.body.decode()


def test_no_json(served):
    answer = served.post("/v2/models/ensemble/generate", b'{"text_input": "a"')
    assert answer.status == 500
    assert "failed to parse the request JSON buffer" in answer.error


def test_infer(single, greedy_text):
    answer = single.post("/v2/models/ensemble/infer", infer_body(max_tokens=12))
    assert answer.status == 200
    (text,) = [it["data"][0] for it in answer.json["outputs"] if it["name"] == "text_output"]
    assert text == greedy_text(PROMPT, 12)


def test_infer_tells_the_code(single):
    answer = single.post("/v2/models/ensemble/infer", infer_body(max_tokens=0))
    assert answer.status == 400
    assert "request_output_len is 0; wanted 1 or more" in answer.error
    body = infer_body(max_tokens=1)
    body["inputs"].append({"name": "lora_task_id", "shape": [1, 1], "datatype": "UINT64", "data": [3]})
    answer = single.post("/v2/models/ensemble/infer", body)
    assert answer.status == 501
    assert "input lora_task_id needs a feature" in answer.error


def infer_body(**numbers: int) -> dict:
    inputs = [{"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": [PROMPT]}]
    inputs += [{"name": k, "shape": [1, 1], "datatype": "INT32", "data": [v]} for k, v in numbers.items()]
    return {"inputs": inputs}
