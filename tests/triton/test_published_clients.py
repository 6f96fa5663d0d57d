"""What the published clients and benchmarks of the TensorRT-LLM backend do and rely on, call by call."""

import json
import queue
from functools import partial

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from served import ENDLESS, PATIENCE_S, PROMPT, tensor

CLIENTS = {"grpc": grpc, "http": http}
STATISTICS = {
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
}


@pytest.fixture(scope="module")
def classic(start, long_engine_dir):
    """As the old guides deploy it for these scripts: one response a request, the prompt part of the answer."""
    settings = {"decoupled_mode": False, "exclude_input_in_output": False, "stats_check_period_ms": 20}
    with start(engine=long_engine_dir, **settings) as served:
        yield served


@pytest.fixture(params=CLIENTS)
def client(request, classic):
    url = classic.server.grpc_url if request.param == "grpc" else classic.server.http_url.removeprefix("http://")
    options = {"concurrency": 8} if request.param == "http" else {}
    with CLIENTS[request.param].InferenceServerClient(url, **options) as made:
        yield made


def inputs_for(client, values):
    """Tensors of the client's own protocol."""
    library = http if isinstance(client, http.InferenceServerClient) else grpc
    made = []
    for name, value in values.items():
        made.append(library.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)))
        made[-1].set_data_from_numpy(value)
    return made


def texts(*words):
    return np.array([words], dtype=object)


def number(value, dtype=np.int32):
    return np.array([[value]], dtype=dtype)


def test_chain_by_hand_equals_the_ensemble(client, greedy_text):
    """The functional test of the old tools: three models one after the other, words that are empty, no sampling."""

    def ask(model, **values):
        return client.infer(model, inputs_for(client, values), request_id="7")

    empty = {"BAD_WORDS_DICT": texts(""), "STOP_WORDS_DICT": texts("")}
    prepared = ask("preprocessing", QUERY=texts(PROMPT), REQUEST_OUTPUT_LEN=number(9), **empty)
    answer = ask(
        "tensorrt_llm",
        input_ids=prepared.as_numpy("INPUT_ID"),
        input_lengths=prepared.as_numpy("REQUEST_INPUT_LEN"),
        request_output_len=prepared.as_numpy("REQUEST_OUTPUT_LEN"),
    )
    by_hand = ask(
        "postprocessing",
        TOKENS_BATCH=answer.as_numpy("output_ids"),
        SEQUENCE_LENGTH=answer.as_numpy("sequence_length"),
    ).as_numpy("OUTPUT")
    whole = ask(
        "ensemble", text_input=texts(PROMPT), max_tokens=number(9), bad_words=texts(""), stop_words=texts("")
    ).as_numpy("text_output")
    assert by_hand == whole  # as the script compares: one element each
    assert whole.reshape(-1)[0].decode() == PROMPT + greedy_text(PROMPT, 9)


def engine_inputs(client, ids, length, **further):
    values = {"input_ids": np.array([ids], np.int32), "input_lengths": number(len(ids))}
    return inputs_for(client, {**values, "request_output_len": number(length), **further})


def test_answers_are_told_apart_by_id_and_measured_by_the_first_output(classic, prompts):
    """The benchmarks take the third dimension of the first output listed for the number of tokens."""
    answers = queue.SimpleQueue()
    with grpc.InferenceServerClient(classic.server.grpc_url) as client:
        for index, ids in enumerate(prompts[:8]):
            inputs = engine_inputs(client, ids, 5 + index, end_id=number(-1))
            callback = partial(lambda result, error: answers.put((result, error)))
            client.async_infer("tensorrt_llm", inputs, callback=callback, request_id=str(index))
        found = {}
        for _ in range(8):
            result, error = answers.get(timeout=PATIENCE_S)
            assert error is None
            message = result.get_response(as_json=True)
            assert message["outputs"][0]["name"] == "output_ids"
            found[message["id"]] = int(message["outputs"][0]["shape"][2])
    assert found == {str(index): len(ids) + 5 + index for index, ids in enumerate(prompts[:8])}


def test_futures_of_the_http_client(classic, prompts, greedy):
    url = classic.server.http_url.removeprefix("http://")
    with http.InferenceServerClient(url, concurrency=8) as client:
        waiting = [
            client.async_infer("tensorrt_llm", engine_inputs(client, ids, 6), request_id=str(index))
            for index, ids in enumerate(prompts[:8])
        ]
        for future, ids in zip(waiting, prompts, strict=False):
            assert future.get_result().as_numpy("output_ids")[0][0].tolist() == ids + greedy(ids, 6)


@pytest.mark.parametrize("stop", [False, True], ids=["whole", "stopped"])
def test_answers_in_one_piece(classic, prompts, greedy, stop):
    """The engine client without streaming. It takes the tokens from the last response, a stopped request's too."""
    classic.settle()  # or an earlier test's request is still shown as active, and the order to stop comes first
    answers = queue.SimpleQueue()
    ids, length = prompts[0], ENDLESS if stop else 16
    sampling = {"beam_width": number(1), "temperature": number(1.0, np.float32), "streaming": number(False, bool)}
    sampling |= {"end_id": number(-1), "pad_id": number(0), "return_log_probs": number(True, bool)}
    sampling |= {"runtime_top_k": number(1), "runtime_top_p": number(0.0, np.float32)}
    with grpc.InferenceServerClient(classic.server.grpc_url) as client:
        order = partial(
            client.async_infer,
            "tensorrt_llm",
            request_id="one piece",
            callback=lambda result, error: answers.put((result, error)),
            parameters={"Streaming": False},
        )
        order(inputs=engine_inputs(client, ids, length, **sampling))
        if stop:
            classic.wait_until_active()
            order(inputs=engine_inputs(client, [0], 0, stop=number(True, bool)))
        found = [answers.get(timeout=PATIENCE_S) for _ in range(2 if stop else 1)]
    assert [error for _, error in found if error] == []
    (result,) = [result for result, _ in found if result.as_numpy("output_ids") is not None]  # the order's has none
    tokens = result.as_numpy("output_ids")[0][0].tolist()
    assert result.as_numpy("sequence_length")[0][0] == len(tokens)
    generated = tokens[len(ids) :]
    assert tokens[: len(ids)] == ids
    assert len(generated) < ENDLESS if stop else len(generated) == 16
    assert generated == greedy(ids, 16)[: len(generated)] or generated[:16] == greedy(ids, 16)
    assert result.as_numpy("output_log_probs").shape == (1, 1, len(generated))
    assert result.as_numpy("cum_log_probs").shape == (1, 1)


def test_a_future_can_be_cancelled(classic, prompts):
    answers = queue.SimpleQueue()
    with grpc.InferenceServerClient(classic.server.grpc_url) as client:
        future = client.async_infer(
            "tensorrt_llm",
            engine_inputs(client, prompts[0], ENDLESS, end_id=number(-1)),
            callback=lambda result, error: answers.put((result, error)),
        )
        classic.wait_until_active()
        future.cancel()
        _, error = answers.get(timeout=PATIENCE_S)
    assert error.status() == "StatusCode.CANCELLED"
    classic.wait_until_idle()


class Stream:
    """The streaming clients: one stream, read when it has ended."""

    def __init__(self, served):
        self.answers = queue.SimpleQueue()
        self.client = grpc.InferenceServerClient(served.server.grpc_url)
        self.client.start_stream(callback=lambda result, error: self.answers.put(error if error else result))

    def close(self, **options):
        self.client.stop_stream(**options)
        self.client.close()
        return [self.answers.get() for _ in range(self.answers.qsize())]


ENGINE_OUTPUTS = ["output_ids", "sequence_length", "cum_log_probs", "output_log_probs"]


def stream_tokens(served, ids, length, outputs=None, **options):
    stream = Stream(served)
    inputs = engine_inputs(
        stream.client,
        ids,
        length,
        beam_width=number(1),
        temperature=number(1.0, np.float32),
        streaming=number(True, bool),
        end_id=number(0),
        pad_id=number(0),
        return_log_probs=number(True, bool),
        runtime_top_k=number(1),
        runtime_top_p=number(0.0, np.float32),
    )
    wanted = outputs and [grpc.InferRequestedOutput(name) for name in outputs]
    stream.client.async_stream_infer("tensorrt_llm", inputs, outputs=wanted, request_id="streamed", **options)
    return stream


@pytest.mark.parametrize("outputs", [None, ENGINE_OUTPUTS, ["output_ids", "sequence_length"]])
def test_stream_of_tokens(served, prompts, greedy, outputs):
    """The client compares the names of the outputs with those it asked for, in every response."""
    found = []
    for result in stream_tokens(served, prompts[0], 12, outputs).close():
        assert not isinstance(result, InferenceServerException), result
        names = {output.name for output in result.get_response().outputs}
        assert names == set(outputs) if outputs else {"output_ids", "sequence_length"} <= names
        if result.as_numpy("sequence_length")[0][0] > 0:
            found += list(result.as_numpy("output_ids")[0][0])
    assert found == greedy(prompts[0], 12, end_id=0)


def test_stream_stopped_on_the_way(endless, prompts):
    stream = stream_tokens(endless, prompts[0], ENDLESS)
    first = stream.answers.get(timeout=PATIENCE_S)
    stop = engine_inputs(stream.client, [0], 0, stop=number(True, bool))
    stream.client.async_stream_infer("tensorrt_llm", stop, request_id="streamed", parameters={"Streaming": True})
    found = [first, *stream.close()]
    assert not any(isinstance(result, InferenceServerException) for result in found)
    assert 0 < len(found) < ENDLESS


def test_stream_cancelled_on_the_way(endless, prompts):
    stream = stream_tokens(endless, prompts[0], ENDLESS)
    first = stream.answers.get(timeout=PATIENCE_S)
    *others, last = [first, *stream.close(cancel_requests=True)]
    assert last.status() == "StatusCode.CANCELLED"
    assert not any(isinstance(result, InferenceServerException) for result in others)


def text_request(prompt, length, stream, **further):
    values = {"text_input": texts(prompt), "max_tokens": number(length), "stream": number(stream, bool)}
    values |= {"beam_width": number(1), "temperature": number(1.0, np.float32), **further}
    return {**values, "exclude_input_in_output": number(False, bool)}


def ask_for_text(served, model, requests, outputs):
    """One stream for rows put together, as the end-to-end client does it: (row, sequence) -> text, and the results."""
    stream = Stream(served)
    values = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    wanted = [grpc.InferRequestedOutput(name) for name in ("text_output", *outputs)]
    inputs = inputs_for(stream.client, values)
    stream.client.async_stream_infer(model, inputs, outputs=wanted, request_id="text")
    found, results = {}, stream.close()
    for result in results:
        assert not isinstance(result, InferenceServerException), result
        row, sequence = (result.as_numpy(name) for name in ("batch_index", "sequence_index"))
        key = (0 if row is None else int(row[0][0]), 0 if sequence is None else int(sequence[0][0]))
        found[key] = found.get(key, "") + result.as_numpy("text_output")[0].decode("utf-8")
    return found, results


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "inflight_text"])
@pytest.mark.parametrize("stream", [False, True])
def test_text_of_one_prompt(served, greedy_text, model, stream):
    """Every field that the end-to-end client may send, word lists of no words too."""
    nothing = np.zeros((1, 0))
    further = {
        "num_return_sequences": number(1),
        "repetition_penalty": number(1.0, np.float32),
        "presence_penalty": number(0.0, np.float32),
        "frequency_penalty": number(0.0, np.float32),
        "embedding_bias_words": nothing.astype(object),
        "embedding_bias_weights": nothing.astype(np.float32),
        "return_log_probs": number(True, bool),
        "return_context_logits": number(True, bool),
        "return_generation_logits": number(True, bool),
        "return_perf_metrics": number(True, bool),
        "end_id": number(0),
        "pad_id": number(0),
    }
    outputs = ["cum_log_probs", "output_log_probs", "context_logits", "generation_logits", *STATISTICS]
    found, results = ask_for_text(served, model, [text_request(PROMPT, 8, stream, **further)], outputs)
    assert found == {(0, 0): greedy_text(PROMPT, 8) if stream else PROMPT + greedy_text(PROMPT, 8)}
    for result in results:
        assert all(result.as_numpy(name)[0][0] >= 0 for name in STATISTICS)
        assert result.as_numpy("text_output").ndim == 1
        assert result.as_numpy("output_log_probs").ndim == 3
        assert result.as_numpy("generation_logits").ndim == 4
    assert results[0].as_numpy("context_logits").ndim == 3


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "inflight_text"])
@pytest.mark.parametrize("stream", [False, True])
def test_text_of_several_prompts_at_once(served, greedy_text, model, stream):
    prompts = [PROMPT, "import os\n", "def add(a, b):"]
    found, _ = ask_for_text(served, model, [text_request(it, 8, stream) for it in prompts], ["batch_index"])
    wanted = [greedy_text(it, 8) if stream else it + greedy_text(it, 8) for it in prompts]
    assert found == {(row, 0): text for row, text in enumerate(wanted)}


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "inflight_text"])
def test_text_of_several_sequences(served, greedy_text, model):
    request = text_request(PROMPT, 8, True, num_return_sequences=number(2))
    found, _ = ask_for_text(served, model, [request], ["sequence_index"])
    assert found == dict.fromkeys([(0, 0), (0, 1)], greedy_text(PROMPT, 8))


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "inflight_text"])
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "min_length": 24},
        {"temperature": 0.000001, "min_length": 24, "end_id": 1048576},
    ],
    ids=["greedy", "least length", "no end"],
)
def test_serving_benchmarks(served, greedy_text, model, fields):
    """They post to generate_stream and read a text from every event; what is no input becomes a parameter."""
    body = {"accumulate_tokens": True, "text_input": PROMPT, "top_p": 1.0, "max_tokens": 24, "stream": True, **fields}
    answer = served.post(f"/v2/models/{model}/generate_stream", body)
    events = [json.loads(line.removeprefix(b"data:")) for line in answer.body.split(b"\n") if line.strip()]
    assert answer.status == 200
    assert "".join(event["text_output"] for event in events) == greedy_text(PROMPT, 24)
    assert 20 <= len(events) <= 24  # about one a token: they count them


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm", "tensorrt_llm_bls"])
def test_what_load_generators_ask_before_they_begin(served, model):
    with grpc.InferenceServerClient(served.server.grpc_url) as client:
        assert client.is_server_ready() and client.is_model_ready(model)
        metadata = client.get_model_metadata(model)
        config = client.get_model_config(model).config
        assert {it.name for it in metadata.inputs} == {it.name for it in config.input}
        assert config.model_transaction_policy.decoupled
        assert client.get_inference_statistics(model).model_stats[0].name == model


def test_load_generators_count_the_empty_final_response(served):
    with served.stream("ensemble", max_tokens=4) as stream:
        responses = list(stream)
    assert [response.final for response in responses] == [False] * (len(responses) - 1) + [True]
    assert tensor("max_tokens", 4).shape() == [1, 1]
