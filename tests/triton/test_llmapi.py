"""The model that holds the whole engine and is set up by model.yaml: its own servers, the same answers."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from inflight.executor import Request
from inflight.serve.llmapi_repository import fill_llmapi_repository
from inflight.serve.server import TritonServer
from served import ENDLESS, PROMPT, Served, becomes, ready

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tensorrt_llm"
TYPES = {float: np.float32, bool: bool, int: np.int32}


@pytest.fixture(scope="module")
def served(long_engine_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llmapi")
    repository = fill_llmapi_repository(folder / "models", long_engine_dir)
    server = TritonServer(
        repository,
        arguments=["--log-verbose=1"],
        cache=folder / "backends",
        log=folder / "server.log",
    )
    with ready(server):
        yield Served(server, long_engine_dir)


@pytest.fixture(scope="module")
def single(python_7m, tmp_path_factory):
    """One response a request; deployed by hand, with the checkpoint itself and the settings under another name."""
    folder = tmp_path_factory.mktemp("llmapi-single")
    shutil.copytree(ROOT / "model_repo_llmapi", folder / "models")
    settings = folder / "models" / MODEL / "1/model.yaml"
    values = f"engine_dir:{python_7m},decoupled_mode:false"
    subprocess.run([sys.executable, ROOT / "tools/fill_template.py", "-i", settings, values], check=True)
    shutil.copy(settings, folder / "mine.yaml")
    settings.write_text("model: nowhere\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LLM_CONFIG_PATH", str(folder / "mine.yaml"))
        server = TritonServer(folder / "models", cache=folder / "backends", log=folder / "server.log")
        with ready(server):
            yield Served(server, python_7m)


@pytest.fixture(autouse=True)
def servers_live_on(request, greedy_text):
    """Whatever a test sends, the model answers as before."""
    yield
    for name in {"served", "single"} & set(request.fixturenames):
        server = request.getfixturevalue(name)
        assert text_of(ask(server)) == PROMPT + greedy_text(PROMPT)


def arrays(**fields):
    """Inputs of a request for 8 tokens, without the batch dimension that the model does not have."""
    given = {"text_input": PROMPT, "sampling_param_max_tokens": 8, **fields}
    return {name: value if isinstance(value, np.ndarray) else array(name, value) for name, value in given.items()}


def array(name, value):
    values = value if isinstance(value, list) else [value]
    if not values or isinstance(values[0], str | bytes):
        return np.array([it.encode() if isinstance(it, str) else it for it in values], object)
    return np.array(values, np.uint64 if name in ("sampling_param_seed", "lora_id") else TYPES[type(values[0])])


def sampling(**fields):
    return {f"sampling_param_{name}": value for name, value in fields.items()}


def open_stream(served, request_id="", **fields):
    return served.stream(MODEL, **arrays(**fields), request_id=request_id)


def stream(served, **fields):
    with open_stream(served, **fields) as found:
        responses = list(found)
    assert responses[-1].error is None, responses[-1].error
    assert [it.final for it in responses] == [False] * (len(responses) - 1) + [True]
    return responses


def ask(served, **fields):
    (response,) = stream(served, **fields)
    return response.outputs


def text_of(outputs):
    return outputs["text_output"].item().decode()


def test_answer_with_its_prompt(served, greedy_text):
    outputs = ask(served, **sampling(max_tokens=40))
    assert text_of(outputs) == PROMPT + greedy_text(PROMPT, 40)
    assert set(outputs) == {"text_output"}


def test_answer_without_its_prompt(served, greedy_text):
    assert text_of(ask(served, **sampling(exclude_input_from_output=True))) == greedy_text(PROMPT)


def test_length_of_an_answer_that_says_none(served, greedy_text):
    inputs = arrays(return_finish_reason=True)
    del inputs["sampling_param_max_tokens"]
    with served.stream(MODEL, **inputs) as found:
        (response,) = found
    assert response.text == PROMPT + greedy_text(PROMPT, 32)
    assert response.outputs["finish_reason"].item() == b"length"


def test_stream_says_all_so_far(served, greedy_text):
    responses = stream(served, streaming=True, return_finish_reason=True, return_stop_reason=True)
    texts = [it.text for it in responses]
    assert len(texts) > 4
    assert all(later.startswith(text) and later != text for text, later in itertools.pairwise(texts))
    assert texts[-1] == greedy_text(PROMPT)
    reasons = [it.outputs["finish_reason"].item() for it in responses]
    assert reasons == [b"None"] * (len(reasons) - 1) + [b"length"]
    assert {it.outputs["stop_reason"].item() for it in responses} == {b"None"}


def test_characters_of_several_tokens_come_whole(served, tokenizer, greedy_text):
    prompt = "# é ü 世界 🙂\ntext = '世界 🙂"
    texts = [it.text for it in stream(served, text_input=prompt, streaming=True, **sampling(max_tokens=24))]
    assert texts[-1] == greedy_text(prompt, 24)
    assert text_of(ask(served, text_input=prompt, **sampling(max_tokens=24))) == prompt + texts[-1]


@pytest.fixture(scope="module")
def text(greedy_text):
    return greedy_text(PROMPT, 60)


@pytest.mark.parametrize("streaming", [False, True])
def test_answer_ends_before_the_first_stop_word(served, text, tokenizer, streaming):
    word = text[41:47]
    assert text.find(word) == 41 and tokenizer.encode(word, False) != tokenizer.encode(text, False)
    responses = stream(
        served,
        streaming=streaming,
        return_finish_reason=True,
        return_stop_reason=True,
        **sampling(max_tokens=ENDLESS, stop=["never said", "", "read_file", word], exclude_input_from_output=True),
    )
    assert responses[-1].text == text[:41]
    assert all(text[:41].startswith(it.text) for it in responses)
    last = responses[-1].outputs
    assert (last["finish_reason"].item(), last["stop_reason"].item()) == (b"stop", word.encode())


def test_sampling_fields_reach_the_executor(served, greedy_text):
    fields = {"temperature": 0.9, "top_k": 30, "top_p": 0.8, "seed": 7}
    for chosen in (fields, {**fields, "seed": 8}, {"frequency_penalty": 1.5}, {"presence_penalty": 1.5}):
        found = text_of(ask(served, **sampling(max_tokens=40, exclude_input_from_output=True, **chosen)))
        assert found == greedy_text(PROMPT, 40, **chosen) != greedy_text(PROMPT, 40)


def test_best_of_is_the_likeliest(served, executor, tokenizer):
    chosen = {"top_k": 30, "temperature": 1.2, "seed": 3}
    request = Request(tokenizer.encode(PROMPT), 12, num_return_sequences=4, end_id=tokenizer.end_id, log_probs=True)
    for name, value in chosen.items():
        setattr(request, name, value)
    results = list(executor.submit(request))
    best = max(results, key=lambda it: it.cum_log_prob)
    assert best.sequence_index != 0
    outputs = ask(
        served,
        return_cumulative_logprob=True,
        **sampling(max_tokens=12, best_of=4, exclude_input_from_output=True, **chosen),
    )
    assert text_of(outputs) == tokenizer.decode(best.tokens)
    assert outputs["cumulative_logprob"].item() == pytest.approx(best.cum_log_prob, rel=1e-5)


def test_perf_metrics(served):
    prompt = "import math\n" + PROMPT * 12  # begins as no other, so that nothing of it is there
    before, after = (ask(served, text_input=prompt, **sampling(return_perf_metrics=True)) for _ in range(2))
    assert {name: value.shape for name, value in after.items()} == dict.fromkeys(after, (1,)) and len(after) == 13
    blocks = before["kv_cache_missed_block"].item()
    assert blocks > 1 and before["kv_cache_alloc_total_blocks"].item() == blocks
    assert after["kv_cache_reused_block"].item() == blocks and after["kv_cache_missed_block"].item() == 0
    assert (before["kv_cache_hit_rate"].item(), after["kv_cache_hit_rate"].item()) == (0.0, 1.0)
    order = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")
    times = [it[name].item() for it in (before, after) for name in order]
    assert times == sorted(times) and times[0] > 0
    assert after["acceptance_rate"].item() == after["total_draft_tokens"].item() == 0


def test_16_streams_at_once(served, prompts, tokenizer, greedy_text):
    texts = [tokenizer.decode(prompt[:30]) for prompt in prompts[:16]]
    streams = [open_stream(served, text_input=it, streaming=True, **sampling(max_tokens=30)) for it in texts]
    for prompt, found in zip(texts, streams, strict=True):
        with found:
            *_, last = found
            assert (last.error, last.text) == (None, greedy_text(prompt, 30))


def test_requests_only_what_is_asked_for(served):
    with served.stream(
        MODEL, outputs=["text_output", "finish_reason"], **arrays(return_finish_reason=True, return_stop_reason=True)
    ) as found:
        (response,) = found
    assert set(response.outputs) == {"text_output", "finish_reason"}


def test_stop_by_id(served):
    streams = [open_stream(served, "mine", streaming=True, **sampling(max_tokens=ENDLESS)) for _ in range(2)]
    with open_stream(served, "other", streaming=True, **sampling(max_tokens=60)) as other:
        for it in streams:
            assert it.next().error is None
        assert "cancelled" in refusal(served, "mine", stop=True)
        for it in streams:
            with it:
                *said, last = it
            assert "cancelled" in last.error and len(said) < ENDLESS - 10
        assert list(other)[-1].error is None


def test_stop_of_an_unknown_id(served):
    assert "cancelled" in refusal(served, "nobody", stop=True)


def test_stop_without_an_id(served):
    assert refusal(served, stop=True) == "Trying to stop a request but request ID is not provided"


def test_cancelled_stream(served):
    """The server counts no cancellations of python models, but its log shows how the request ended."""
    with open_stream(served, "left alone", streaming=True, **sampling(max_tokens=ENDLESS)) as found:
        assert [found.next().error for _ in range(3)] == [None] * 3
        found.cancel()
        ended = "request 'left alone' ends: the request was cancelled"
        becomes(True, lambda: ended in served.server.log.read_text())


def test_timeout_ends_with_what_is_there(served, greedy_text):
    inputs = arrays(return_finish_reason=True, **sampling(max_tokens=ENDLESS, exclude_input_from_output=True))
    with served.stream(MODEL, **inputs, timeout=200_000) as found:
        (response,) = found
    assert response.outputs["finish_reason"].item() == b"timeout"
    assert greedy_text(PROMPT, 300).startswith(response.text[:200])


def refusal(served, request_id="", **fields):
    with open_stream(served, request_id, **fields) as found:
        (response,) = found
    assert response.error is not None and response.final is False
    return response.error


REFUSED = {
    "two prompts": ({"text_input": ["a", "b"]}, "text_input holds 2 prompts, wanted 1"),
    "no tokens": ({"text_input": ""}, "the prompt (text_input) gives 0 tokens, wanted at least 1"),
    "not UTF-8": ({"text_input": b"a\xff"}, "text_input is not UTF-8: invalid start byte at byte 1"),
    "no UTF-8 to stop at": (sampling(stop=[b"\xff"]), "sampling_param_stop is not UTF-8: invalid start byte at byte 0"),
    "no length": (sampling(max_tokens=0), "max_tokens is 0, wanted at least 1"),
    "too long": ({"text_input": PROMPT * 4000}, "16384"),
    "negative top_k": (sampling(top_k=-1), "top_k is -1"),
    "negative temperature": (sampling(temperature=-1.0), "temperature is -1"),
    "no temperature": (sampling(temperature=float("nan")), "temperature is nan"),
    "infinite penalty": (sampling(presence_penalty=float("inf")), "presence_penalty is inf"),
    "no sequence": (sampling(best_of=0), "sampling_param_best_of is 0, wanted at least 1"),
    "streams of several": ({**sampling(best_of=2), "streaming": True}, "sampling_param_best_of is 2 with streaming"),
    "image": ({"image_url": "http://x"}, "input image_url is for multimodal networks, which are not supported"),
    "adapter": ({"lora_id": 3}, "input lora_id is for LoRA adapters, which are not supported"),
    "adapter's place": ({"lora_path": "x"}, "input lora_path is for LoRA adapters, which are not supported"),
    "processor": (sampling(logits_post_processor_name="x"), "is for logits post-processors, which are not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(served, case):
    fields, text = REFUSED[case]
    assert text in refusal(served, **fields)


def test_empty_texts_ask_for_nothing(served):
    assert ask(served, image_url=[""], lora_name="", **sampling(stop=[""], logits_post_processor_name=""))


def infer(single, **fields):
    return single.infer(MODEL, **arrays(**fields))


def test_single_response_model(single, text, greedy_text):
    assert text_of(infer(single)) == PROMPT + greedy_text(PROMPT)
    outputs = infer(single, return_stop_reason=True, **sampling(max_tokens=60, stop=[text[41:47]]))
    assert (text_of(outputs), outputs["stop_reason"].item()) == (PROMPT + text[:41], text[41:47].encode())


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("INVALID_ARGUMENT", {"streaming": True}),
        ("INVALID_ARGUMENT", sampling(temperature=-1.0)),
        ("UNIMPLEMENTED", {"image_url": "http://x"}),
        ("INVALID_ARGUMENT", {"stop": True}),
    ],
)
def test_codes_of_errors(single, code, fields):
    with pytest.raises(InferenceServerException) as error:
        infer(single, **fields)
    assert error.value.status() == f"StatusCode.{code}"


def test_generate_endpoint(single, greedy_text):
    body = {"text_input": PROMPT, "sampling_param_max_tokens": 8, "max_tokens": 3}
    answer = single.post(f"/v2/models/{MODEL}/generate", body)
    assert answer.json["text_output"] == PROMPT + greedy_text(PROMPT)
