"""Tensors of a request to the llmapi model, checked, as a request to the executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inflight.executor import Request
from inflight.serve.model_support import RequestError, texts
from inflight.tokenizer import Tokenizer

Arrays = Mapping[str, np.ndarray]

DEFAULT_MAX_TOKENS = 32  # of the LLM API

# Input -> field of the executor's request.
_SAMPLING = {
    "sampling_param_temperature": "temperature",
    "sampling_param_top_k": "top_k",
    "sampling_param_top_p": "top_p",
    "sampling_param_frequency_penalty": "frequency_penalty",
    "sampling_param_presence_penalty": "presence_penalty",
    "sampling_param_max_tokens": "max_tokens",
    "sampling_param_seed": "seed",
}
# Inputs of features that are not there, and what they belong to.
_UNSUPPORTED = {
    "image_url": "multimodal networks",
    "lora_id": "LoRA adapters",
    "lora_name": "LoRA adapters",
    "lora_path": "LoRA adapters",
    "lora_ckpt_source": "LoRA adapters",
    "sampling_param_logits_post_processor_name": "logits post-processors",
}


@dataclass(frozen=True)
class Order:
    """What a client wants. `request` returns generated tokens only: the prompt is put before their text."""

    request: Request
    streaming: bool = False
    includes_prompt: bool = True
    stop_words: list[str] = field(default_factory=list)
    finish_reason: bool = False
    stop_reason: bool = False
    cumulative_logprob: bool = False
    perf_metrics: bool = False


def read_order(inputs: Arrays, tokenizer: Tokenizer, decoupled: bool, timeout_s: float = 0.0) -> Order:
    """Raises RequestError."""
    _refuse_unsupported(inputs)
    streaming = flag(inputs, "streaming")
    if streaming and not decoupled:
        raise RequestError("INVALID_ARG", "Streaming is only supported if model is deployed using decoupled mode.")
    stop_words = [word for word in _texts(inputs, "sampling_param_stop") if word]
    sequences = _best_of(inputs, streaming)
    cumulative_logprob = flag(inputs, "return_cumulative_logprob")
    perf_metrics = flag(inputs, "sampling_param_return_perf_metrics")
    sampling = {field: scalar(inputs, name) for name, field in _SAMPLING.items() if name in inputs}
    request = Request(
        input_ids=_prompt(inputs, tokenizer),
        end_id=tokenizer.end_id,
        streaming=streaming or bool(stop_words),  # to see a stop word as soon as it is said
        num_return_sequences=sequences,
        log_probs=cumulative_logprob or sequences > 1,
        perf_metrics=perf_metrics,
        timeout_seconds=timeout_s,
        **{"max_tokens": DEFAULT_MAX_TOKENS, **sampling},
    )
    return Order(
        request,
        streaming,
        not streaming and not flag(inputs, "sampling_param_exclude_input_from_output"),
        stop_words,
        flag(inputs, "return_finish_reason"),
        flag(inputs, "return_stop_reason"),
        cumulative_logprob,
        perf_metrics,
    )


def scalar(inputs: Arrays, name: str) -> Any:
    array = inputs[name]
    if array.size != 1:
        raise RequestError("INVALID_ARG", f"{name} holds {array.size} values, wanted 1")
    return array.item()


def flag(inputs: Arrays, name: str) -> bool:
    return name in inputs and bool(scalar(inputs, name))


def _refuse_unsupported(inputs: Arrays) -> None:
    for name, feature in _UNSUPPORTED.items():
        if name in inputs and any(value not in (b"", "") for value in inputs[name].flat):
            raise RequestError("UNSUPPORTED", f"input {name} is for {feature}, which are not supported")


def _best_of(inputs: Arrays, streaming: bool) -> int:
    count = scalar(inputs, "sampling_param_best_of") if "sampling_param_best_of" in inputs else 1
    if count < 1:
        raise RequestError("INVALID_ARG", f"sampling_param_best_of is {count}, wanted at least 1")
    if count > 1 and streaming:
        raise RequestError("INVALID_ARG", f"sampling_param_best_of is {count} with streaming, wanted 1")
    return count


def _prompt(inputs: Arrays, tokenizer: Tokenizer) -> list[int]:
    if (count := inputs["text_input"].size) != 1:
        raise RequestError("INVALID_ARG", f"text_input holds {count} prompts, wanted 1")
    ids = tokenizer.encode_unlocked(*_texts(inputs, "text_input"))
    if not ids:
        raise RequestError("INVALID_ARG", "the prompt (text_input) gives 0 tokens, wanted at least 1")
    return ids


def _texts(inputs: Arrays, name: str) -> list[str]:
    return texts(name, inputs[name].reshape(1, -1))[0] if name in inputs else []
