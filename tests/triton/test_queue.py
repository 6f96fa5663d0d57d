"""Several models and instances in one server, under the other backend name, with short queues and 16-bit logits."""

import queue
import shutil

import numpy as np
import pytest
import tritonclient.grpc as grpc

from served import ENDLESS, PATIENCE_S, PROMPT, tensor

SECOND = "second"  # not decoupled, so that refusals have codes; two instances
LONG = 600
MOST_SENT = 500  # a request takes LONG steps, sending it a moment: the places fill long before


def add_second_model(repository):
    target = repository / SECOND
    shutil.copytree(repository / "tensorrt_llm", target)
    config = target / "config.pbtxt"
    text = config.read_text()
    for old, new in (
        ('name: "tensorrt_llm"', f'name: "{SECOND}"'),
        ("decoupled: True", "decoupled: False"),
        ("count: 1 kind: KIND_CPU", "count: 2 kind: KIND_CPU"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    config.write_text(text)


@pytest.fixture(scope="module")
def module_server(start, long_engine_dir):
    with start(
        engine=long_engine_dir,
        edit=add_second_model,
        triton_backend="tensorrtllm",
        max_batch_size=1,
        max_queue_size=2,
        num_threads=1,
        accumulate_tokens=True,
        logits_datatype="TYPE_FP16",
        stats_check_period_ms=20,
    ) as served:
        yield served


@pytest.fixture
def limited(module_server, greedy_text):
    yield module_server
    module_server.wait_until_idle(SECOND)
    module_server.require_healthy(greedy_text(PROMPT))


def test_full_queue(limited, greedy, prompts):
    running = limited.stream_tokens(prompts[0], ENDLESS, streaming=True)
    running.next()
    waiting = [limited.stream_tokens(prompt, 2) for prompt in prompts[1:3]]
    limited.shows(3, '"active"')
    text = limited.refusal("tensorrt_llm", input_ids=[5], input_lengths=1, request_output_len=2)
    assert "Maximum queue size of 2" in text
    with running:
        running.cancel()
    for prompt, stream in zip(prompts[1:3], waiting, strict=True):
        with stream:
            (response,) = stream
        assert response.tokens == greedy(prompt, 2)


def test_full_queue_of_the_ensemble(limited):
    """/generate has one code for all errors; the text tells."""
    streams = [limited.stream_tokens([5, 6, 7], ENDLESS, streaming=True) for _ in range(3)]
    streams[0].next()
    limited.shows(3, '"active"')
    answer = limited.generate()
    assert answer.status == 400
    assert "Maximum queue size of 2" in answer.error
    for stream in streams:
        with stream:
            stream.cancel()


def test_code_of_a_full_queue(limited, greedy):
    """Long requests come in until two instances with one place and two waiting places each have no room."""
    answers = queue.SimpleQueue()
    inputs = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": LONG}
    tensors = [tensor(name, value) for name, value in inputs.items()]
    refused, served, sent = [], [], 0

    def take(result, error):
        (refused if error else served).append(error or result.as_numpy("output_ids").flatten().tolist())
        answers.put(None)

    with grpc.InferenceServerClient(limited.server.grpc_url) as client:
        while not refused and sent < MOST_SENT:
            client.async_infer(SECOND, tensors, take)
            sent += 1
        for _ in range(sent):
            answers.get(timeout=PATIENCE_S)
    assert len(served) >= 3  # of the instance that refused
    assert refused
    for error in refused:
        assert error.status() == "StatusCode.UNAVAILABLE"
        assert "Maximum queue size of 2" in error.message()
    assert set(map(tuple, served)) == {tuple(greedy([5, 6, 7], LONG))}


def test_gauges_of_instances_add_up(limited):
    assert limited.sample('"max"', "nv_trt_llm_request_metrics") == 1
    assert limited.sample('"max"', "nv_trt_llm_request_metrics", model=SECOND) == 2


def test_counters_of_instances_add_up(limited, greedy):
    """Whichever instance a request went to."""
    limited.settle(SECOND)
    before = limited.sample("inflight_generated_tokens_total", model=SECOND)
    for _ in range(4):
        limited.infer(SECOND, input_ids=[5, 6, 7], input_lengths=3, request_output_len=10)
    limited.shows(before + 40, "inflight_generated_tokens_total", model=SECOND)


def test_half_precision_logits(limited, executor):
    from inflight.executor import Request

    (expected,) = executor.submit(Request([5, 6, 7], 3, generation_logits=True, context_logits=True))
    (response,) = limited.ask_tokens([5, 6, 7], 3, return_generation_logits=True, return_context_logits=True)
    for name in ("generation_logits", "context_logits"):
        found = response.outputs[name]
        wanted = getattr(expected, name)
        assert found.dtype == np.float16
        assert np.abs(found.reshape(wanted.shape) - wanted).max() < 0.02


def test_accumulated_text(limited, greedy_text):
    """Each response of tensorrt_llm_bls holds all text so far."""
    texts = [event["text_output"] for event in limited.events("tensorrt_llm_bls", max_tokens=12)]
    assert len(texts) == 12
    assert texts[-1] == greedy_text(PROMPT, 12)
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
