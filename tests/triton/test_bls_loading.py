"""tensorrt_llm_bls beside models that come and go: its engine is another model's, and so may its tokenizer be."""

import pytest

from served import PROMPT, becomes, changed

BLS = "tensorrt_llm_bls"
ENGINE = "tensorrt_llm"


@pytest.fixture(scope="module")
def managed(start):
    """Nothing is loaded at the start."""
    with start(arguments=["--model-control-mode=explicit", "--exit-timeout-secs=2"]) as served:
        yield served


def load(managed, *models):
    for model in models:
        assert managed.load(model).status == 200


def load_changed(managed, model, **parameters):
    load(managed, model)
    assert managed.load(model, changed(managed.config(model), **parameters)).status == 200


def unload(managed, model):
    assert managed.unload(model).status == 200
    becomes(True, lambda: managed.is_gone(model))


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
        load_changed(managed, ENGINE, max_batch_size="3")
        assert managed.text(BLS) == greedy_text(PROMPT)
        assert begun + "".join(response.text for response in stream) == greedy_text(PROMPT, 600)
    unload(managed, ENGINE)


def test_tokenizer_of_other_models(managed, greedy_text):
    load(managed, ENGINE)
    load_changed(managed, BLS, tokenizer_dir="${tokenizer_dir}")
    assert managed.refusal(BLS) == "model preprocessing is not ready"
    load(managed, "preprocessing")
    assert managed.refusal(BLS) == "model postprocessing is not ready"
    load(managed, "postprocessing")
    assert managed.text(BLS) == greedy_text(PROMPT)
    unload(managed, "preprocessing")
    assert managed.text(BLS) == greedy_text(PROMPT)
