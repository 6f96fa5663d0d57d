"""The engine model in Python: what it takes from config.pbtxt, and rules of requests that need no server."""

import re

import numpy as np
import pytest

from inflight.executor import Retention
from inflight.serve.engine_request import Defaults, read_rows
from inflight.serve.engine_settings import ParameterError, read_parameters
from inflight.serve.model_support import RequestError

OUTPUTS = {"output_ids", "sequence_length", "prefix_ids"}


def rows_of(defaults=None, outputs=OUTPUTS, **inputs):
    arrays = {
        "input_ids": np.array([[1, 2, 3]], np.int32),
        "input_lengths": np.array([2], np.int32),
        "request_output_len": np.array([4], np.int32),
    }
    arrays |= {name: np.array(value) for name, value in inputs.items()}
    return read_rows(arrays, set(outputs), defaults or Defaults(decoupled=True))


def test_padding_is_stripped():
    (row,) = rows_of()
    assert (row.request.input_ids, row.request.max_tokens, row.request.prefix_tokens) == ([1, 2], 4, 16)
    assert row.includes_input and not row.perf_metrics


def test_length_that_is_left_out():
    inputs = {"input_ids": np.array([[1, 2, 3]], np.int32), "request_output_len": np.array([4], np.int32)}
    (row,) = read_rows(inputs, OUTPUTS, Defaults(decoupled=True))
    assert row.request.input_ids == [1, 2, 3]
    inputs = {name: np.repeat(array, 2, axis=0) for name, array in inputs.items()}
    with pytest.raises(RequestError, match="input_lengths is not present in the request of 2 rows"):
        read_rows(inputs, OUTPUTS, Defaults(decoupled=True))


def test_only_what_is_sent_is_computed():
    flags = {"return_log_probs": [True], "return_context_logits": [True], "return_generation_logits": [True]}
    (row,) = rows_of(outputs={"output_ids", "sequence_length", "cum_log_probs"}, **flags)
    request = row.request
    assert (request.log_probs, request.context_logits, request.generation_logits) == (True, False, False)
    assert request.prefix_tokens == 0


def test_seeds():
    seeds = {rows_of(Defaults(True, random_seed=True))[0].request.seed for _ in range(5)}
    assert len(seeds) == 5 and all(0 <= seed < 2**64 for seed in seeds)
    assert rows_of(Defaults(True, random_seed=True), seed=[3])[0].request.seed == 3
    assert rows_of()[0].request.seed == 0


def test_model_of_single_responses():
    single = Defaults(decoupled=False)
    assert rows_of(single, num_return_sequences=[1])
    for fields, text in (
        ({"streaming": [True]}, "Streaming is only supported if model is deployed using decoupled mode"),
        ({"num_return_sequences": [2]}, "num_return_sequences is 2; wanted 1 unless"),
        ({"input_lengths": [1, 1]}, "Batch size > 1 requires the tensorrt_llm backend"),
    ):
        with pytest.raises(RequestError, match=text):
            rows_of(single, **fields)


def test_retention():
    ranges = {"starts": [0, 1], "ends": [1, -1], "priorities": [90, 10], "durations_ms": [-1, 500]}
    inputs = {f"retention_token_range_{name}": [values] for name, values in ranges.items()}
    (row,) = rows_of(**inputs, retention_decode_priority=[[7]])
    found = [(it.begin, it.end, it.retention.priority, it.retention.duration_ms) for it in row.request.retention_ranges]
    assert found == [(0, 1, 90, None), (1, None, 10, 500)]
    assert (row.request.retention_decode.priority, row.request.retention_decode.duration_ms) == (7, None)
    assert rows_of()[0].request.retention_decode.priority == Retention().priority


def config(**parameters):
    needed = {"gpt_model_type": "inflight_fused_batching", "gpt_model_path": "."}
    return {"parameters": {key: {"string_value": str(text)} for key, text in (needed | parameters).items()}}


def test_parameters():
    settings = read_parameters(
        config(
            max_beam_width=3,
            enable_kv_cache_reuse="False",
            kv_cache_free_gpu_mem_fraction="0.5",
            max_attention_window_size="8, 16",
            batch_scheduler_policy="max_utilization",
            num_threads="${num_threads}",
            random_default_seed="true",
            cancellation_check_period_ms=20,
            gpu_weights_percent="1.0",
            mine="yes",
        )
    )
    assert settings.executor == {
        "max_beam_width": 3,
        "kv_cache_enable_block_reuse": False,
        "kv_cache_free_memory_fraction": 0.5,
        "kv_cache_attention_windows": [8, 16],
        "capacity_policy": "max_utilization",
    }
    assert (settings.random_seed, settings.exclude_input, settings.cancellation_period_s) == (True, False, 0.02)
    assert settings.ignored == ["mine"]


@pytest.mark.parametrize(
    ("key", "text", "error"),
    [
        ("gpt_model_type", "fast", "Invalid gpt_model_type: parameter gpt_model_type is 'fast'"),
        ("gpt_model_path", "no/where", "gpt_model_path is 'no/where'; wanted the folder of an engine"),
        ("gpt_model_path", "${engine_dir}", "gpt_model_path is ''; wanted the folder of an engine"),
        ("decoding_mode", "medusa", "decoding_mode is 'medusa'; wanted top_k, top_p"),
        ("max_beam_width", "wide", "max_beam_width is 'wide'; wanted a whole number"),
        ("kv_cache_free_gpu_mem_fraction", "half", "fraction is 'half'; wanted a number"),
        ("enable_chunked_context", "maybe", "enable_chunked_context is 'maybe'; wanted true or false"),
        ("medusa_choices", "{0}", "medusa_choices is '{0}', which this model does not support"),
    ],
)
def test_parameters_that_fail_the_load(key, text, error):
    with pytest.raises(ParameterError, match=re.escape(error)):
        read_parameters(config(**{key: text}))
