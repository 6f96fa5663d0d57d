"""tensorrt_llm_bls beside models that come and go: its engine is another model's, and so may its tokenizer be."""

import json

import pytest

from served import PROMPT, becomes

BLS = "tensorrt_llm_bls"
ENGINE = "tensorrt_llm"


@pytest.fixture(scope="module")
def managed(start):
    """Nothing is loaded at the start."""
    with start(arguments=["--model-control-mode=explicit", "--exit-timeout-secs=2"]) as served:
        yield served


def load(managed, model, parameters=()):
    body = {}
    if parameters:
        assert managed.post(f"/v2/repository/models/{model}/load", {}).status == 200
        config = managed.get(f"/v2/models/{model}/config").json
        for key, value in dict(parameters).items():
            config["parameters"][key] = {"string_value": value}
        body = {"parameters": {"config": json.dumps(config)}}
    answer = managed.post(f"/v2/repository/models/{model}/load", body)
    assert answer.status == 200, answer


def unload(managed, model):
    assert managed.post(f"/v2/repository/models/{model}/unload", {}).status == 200
    index = lambda: {row["name"]: row.get("reason") for row in managed.post("/v2/repository/index", {}).json}  # noqa: E731
    becomes("unloaded", lambda: index()[model])


def test_engine_that_comes_and_goes(managed, greedy_text):
    load(managed, BLS)
    for _ in range(2):
        assert managed.refusal(BLS) == "model tensorrt_llm is not loaded by the inflight backend"
        load(managed, ENGINE)
        assert managed.text(BLS) == greedy_text(PROMPT)
        unload(managed, ENGINE)  # which waits for nothing that the other still holds


def test_engine_reloaded_under_a_stream(managed, greedy_text):
    load(managed, ENGINE)
    with managed.stream(BLS, max_tokens=600, ignore_eos=True) as stream:
        begun = stream.next().text
        load(managed, ENGINE, {"max_batch_size": "3"})
        assert managed.text(BLS) == greedy_text(PROMPT)
        assert begun + "".join(response.text for response in stream) == greedy_text(PROMPT, 600)
    unload(managed, ENGINE)


def test_tokenizer_of_other_models(managed, greedy_text):
    load(managed, ENGINE)
    load(managed, BLS, {"tokenizer_dir": "${tokenizer_dir}"})
    assert managed.refusal(BLS) == "model preprocessing is not ready"
    load(managed, "preprocessing")
    assert managed.refusal(BLS) == "model postprocessing is not ready"
    load(managed, "postprocessing")
    assert managed.text(BLS) == greedy_text(PROMPT)
    unload(managed, "preprocessing")
    assert managed.text(BLS) == greedy_text(PROMPT)
