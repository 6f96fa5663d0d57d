"""Values that the engine model refuses: the right code and a text with what was found and what was wanted. The rows
of the contract's table are in test_error_table.py.

A stream carries no codes, so they are asked for where one request has one response.
"""

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from served import Served

PLAIN = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": 4}
INVALID = "StatusCode.INVALID_ARGUMENT"
NAN = float("nan")

BAD_VALUES = {
    "empty prompt": ({"input_ids": np.zeros((1, 0), np.int32)}, "input input_ids is missing or empty"),
    "length 0": ({"input_lengths": 0}, "input input_lengths is 0; wanted 1 to 3, the width of input_ids"),
    "length too large": ({"input_lengths": 4}, "input input_lengths is 4; wanted 1 to 3, the width of input_ids"),
    "output length 0": ({"request_output_len": 0}, "input request_output_len is 0; wanted 1 or more"),
    "token": ({"input_ids": [5, 4096, 7]}, "4096 is outside the vocabulary of 4096"),
    "negative token": ({"input_ids": [5, -1, 7]}, "-1 is outside the vocabulary of 4096"),
    "shape": ({"input_lengths": [3, 3]}, "unexpected shape for input 'input_lengths'"),
    "temperature": ({"temperature": -1.0}, "input temperature is -1; wanted 0 to"),
    "temperature NaN": ({"temperature": NAN}, "input temperature is nan; wanted 0 to"),
    "top-k": ({"runtime_top_k": -1}, "input runtime_top_k is -1; wanted 0 or more"),
    "top-p NaN": ({"runtime_top_p": NAN}, "input runtime_top_p is nan"),
    "min-p": ({"min_p": 1.5}, "input min_p is 1.5; wanted 0 to 1"),
    "repetition": ({"repetition_penalty": 0.0}, "input repetition_penalty is 0; wanted"),
    "presence": ({"presence_penalty": NAN}, "input presence_penalty is nan"),
    "frequency": ({"frequency_penalty": NAN}, "input frequency_penalty is nan"),
    "ignored prompt": ({"prompt_ignore_length": -1}, "input prompt_ignore_length is -1; wanted 0 or more"),
    "n-grams": ({"no_repeat_ngram_size": -2}, "input no_repeat_ngram_size is -2; wanted 0 or more"),
    "min length": ({"min_length": -1}, "input min_length is -1; wanted 0 or more"),
    "end -2": ({"end_id": -2}, "input end_id is -2; wanted -1 to"),
    "sequences 0": ({"num_return_sequences": 0}, "input num_return_sequences is 0; wanted 1 to 1024"),
    "too many sequences": ({"num_return_sequences": 1 << 30}, "is 1073741824; wanted 1 to 1024"),
    "beams 0": ({"beam_width": 0}, "input beam_width is 0; wanted 1 or more"),
    "early stopping": ({"early_stopping": 3}, "input early_stopping is 3; wanted 0 to 2"),
    "length penalty": ({"len_penalty": 99.0}, "length_penalty is 99, wanted -50 to 50"),
    "top-p decay": ({"runtime_top_p_decay": 1.5}, "input runtime_top_p_decay is 1.5; wanted"),
    "priority": ({"priority": 2.0}, "input priority is 2; wanted 0 to 1"),
    "bias": ({"embedding_bias": [0.0] * 7}, "7 entries"),
    "prompt table's width": (
        {"prompt_embedding_table": np.ones((1, 2, 4), np.float16)},
        "prompt_embedding_table has rows of 4 values, wanted the network's hidden size",
    ),
    "prompt vocabulary": (
        {"prompt_vocab_size": 3},
        "input prompt_vocab_size is 3; wanted at most the 0 rows of prompt_embedding_table",
    ),
    "extra ids": (
        {"prompt_table_extra_ids": [1, 1]},
        "input prompt_table_extra_ids has 2 values; wanted as many as the prompt has tokens, 3",
    ),
    "retention priority": (
        {
            "retention_token_range_starts": [0],
            "retention_token_range_ends": [-1],
            "retention_token_range_priorities": [101],
        },
        "input retention_token_range_priorities is 101; wanted 0 to 100",
    ),
    "continued tokens": ({"continued_tokens": 3}, "continued_tokens is 3, wanted 0 to 2, fewer than the input tokens"),
    "draft token": ({"draft_input_ids": [5, 4096]}, "draft token 4096 is outside the vocabulary of 4096"),
    "draft logits": (
        {"draft_input_ids": [5, 6], "draft_logits": np.zeros((1, 1, 4096), np.float32)},
        "draft_logits has 4096 values, wanted 2 draft tokens x 4096 tokens",
    ),
    "draft logits alone": ({"draft_logits": np.zeros((1, 1, 7), np.float32)}, "draft_logits has 7 values, wanted 0"),
    "threshold 2": ({"draft_input_ids": [5], "draft_acceptance_threshold": 2.0}, "threshold is 2, wanted more than 0"),
    "threshold alone": ({"draft_acceptance_threshold": 0.5}, "threshold is 0.5 without draft tokens"),
    "sequences": ({"num_return_sequences": 2}, "wanted 1 unless the model is deployed using decoupled mode"),
}


def refusal(single: Served, changes: dict, model: str = "tensorrt_llm") -> tuple[str, str]:
    inputs = {name: value for name, value in {**PLAIN, **changes}.items() if value is not None}
    with pytest.raises(InferenceServerException) as caught:
        single.infer(model, **inputs)
    return caught.value.status(), caught.value.message()


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_value(single, case):
    changes, text = BAD_VALUES[case]
    status, found = refusal(single, changes)
    assert text in found
    assert status == INVALID


def test_neutral_values_of_features_to_come(single, greedy):
    neutral = {
        "beam_width": 1,
        "end_id": 5000,  # benchmarks send an end that no vocabulary has, and mean none
        "runtime_top_p_decay": 1.0,
        "draft_input_ids": np.zeros((1, 0), np.int32),
        "prompt_vocab_size": 0,
        "guided_decoding_guide": "",
        "early_stopping": 1,
        "len_penalty": 1.0,
        "beam_search_diversity_rate": 0.5,
        "runtime_top_p_min": 0.1,
        "runtime_top_p_reset_ids": 1,
        "stop_words_list": np.zeros((1, 2, 0), np.int32),
        "embedding_bias": np.zeros((1, 0), np.float32),
    }
    outputs = single.infer("tensorrt_llm", **PLAIN, **neutral)
    assert outputs["output_ids"].flatten().tolist() == greedy(PLAIN["input_ids"], 4)


def test_streams_tell_the_code_on_request(served):
    plain = {"input_ids": [5, 4096], "input_lengths": 2, "request_output_len": 4}
    text = "input token 4096 is outside the vocabulary of 4096 tokens"
    assert served.refusal(**plain) == text
    assert served.refusal(**plain, parameters={"error_codes": True}) == f"[INVALID_ARGUMENT] {text}"
    assert served.refusal(**plain, parameters={"error_codes": False}) == text
    assert served.refusal(**plain, lora_task_id=1, parameters={"error_codes": True}).startswith("[UNIMPLEMENTED] ")


@pytest.mark.parametrize("request_type", ["context_only", "generation_only"])
def test_request_types_to_come(served, request_type):
    text = served.refusal("tensorrt_llm", **PLAIN, parameters={"request_type": request_type})
    assert text == f"request parameter request_type is {request_type}; this version supports context_and_generation"


def test_unknown_request_type_is_the_default(served, greedy):
    with served.stream("tensorrt_llm", **PLAIN, parameters={"request_type": "other"}) as stream:
        (response,) = stream
    assert response.tokens == greedy(PLAIN["input_ids"], 4)
