"""The engine model's tensors as requests to the executor, for the engine model in Python (triton_backend python)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inflight.executor import Request
from inflight.serve.engine_prompt import prompt_table_fields, retention_fields
from inflight.serve.model_support import RequestError

Arrays = Mapping[str, np.ndarray]

PREFIX_TOKENS = 16  # as the C++ backend: what a stateless detokenizer wants to see before a chunk
NGRAM_SIZE_OFF = 1 << 30
WANTED_OUTPUTS = ("output_ids", "sequence_length")


@dataclass(frozen=True)
class Defaults:
    """What the model's parameters say about requests."""

    decoupled: bool
    exclude_input: bool = False
    random_seed: bool = False


@dataclass(frozen=True)
class EngineRow:
    """One row of a batch. `request` says what to compute, the flags what else to send."""

    request: Request
    index: int
    perf_metrics: bool
    num_input_tokens: bool
    num_output_tokens: bool

    @property
    def includes_input(self) -> bool:
        return not (self.request.streaming or self.request.exclude_input)


@dataclass
class _Row:
    """A row under way: fields of the request, and what several inputs make together."""

    fields: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    prompt_table: dict[str, Any] = field(default_factory=dict)
    retention: dict[str, Any] = field(default_factory=dict)


def read_rows(inputs: Arrays, outputs: set[str], defaults: Defaults, timeout_s: float = 0.0) -> list[EngineRow]:
    """The rows of a request; every array has the batch dimension. Raises RequestError."""
    if missing := [name for name in WANTED_OUTPUTS if name not in outputs]:
        raise RequestError("INVALID_ARG", f"the requested outputs lack {' and '.join(missing)}")
    rows = max(map(len, inputs.values()), default=0)
    if rows > 1 and "input_lengths" not in inputs:
        raise RequestError(
            "INVALID_ARG",
            f"input_lengths is not present in the request of {rows} rows; it is wanted to strip the padding",
        )
    if not defaults.decoupled and rows > 1:
        raise RequestError(
            "INVALID_ARG",
            "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy; "
            f"found {rows} rows",
        )
    return [_row(inputs, index, outputs, defaults, timeout_s) for index in range(rows)]


def _row(inputs: Arrays, index: int, outputs: set[str], defaults: Defaults, timeout_s: float) -> EngineRow:
    row = _Row({"exclude_input": defaults.exclude_input, "timeout_seconds": timeout_s})
    for name, array in inputs.items():
        if name in _IGNORED or not array.size:
            continue
        if name not in _FIELDS:
            _refuse(name, array[index])
            continue
        read, target = _FIELDS[name]
        part, _, key = target.rpartition(".")
        getattr(row, part or "fields")[key] = read(name, array[index])
    request = _request(row, outputs, defaults)
    flags = (bool(row.more.get(name)) for name in ("perf_metrics", "num_input_tokens", "num_output_tokens"))
    return EngineRow(request, index, *flags)


def _request(row: _Row, outputs: set[str], defaults: Defaults) -> Request:
    fields = row.fields
    if not fields.get("input_ids"):
        raise RequestError("INVALID_ARG", "input input_ids is missing or empty; wanted at least one token")
    if "max_tokens" not in fields:
        raise RequestError("INVALID_ARG", "request_output_len is not present in the request")
    width = len(fields["input_ids"])
    length = row.more.get("input_length", width)
    if not 1 <= length <= width:
        raise RequestError(
            "INVALID_ARG", f"input input_lengths is {length}; wanted 1 to {width}, the width of input_ids"
        )
    fields["input_ids"] = fields["input_ids"][:length]
    fields |= prompt_table_fields(row.prompt_table, length, width) | retention_fields(row.retention)
    if row.more.get("ignore_eos"):
        fields["end_id"] = None
    if defaults.random_seed:
        fields.setdefault("seed", random.getrandbits(64))
    _check_transactions(fields, defaults)
    return Request(**_only_wanted(fields, outputs), perf_metrics=bool(row.more.get("perf_metrics")))


def _check_transactions(fields: Mapping[str, Any], defaults: Defaults) -> None:
    if defaults.decoupled:
        return
    if fields.get("streaming"):
        raise RequestError("INVALID_ARG", "Streaming is only supported if model is deployed using decoupled mode.")
    if (count := fields.get("num_return_sequences", 1)) != 1:
        raise RequestError(
            "INVALID_ARG",
            f"input num_return_sequences is {count}; wanted 1 unless the model is deployed using decoupled mode",
        )


def _only_wanted(fields: dict[str, Any], outputs: set[str]) -> dict[str, Any]:
    """The engine computes only what will be sent."""
    sent = {"log_probs": {"cum_log_probs", "output_log_probs"}}
    sent |= {name: {name} for name in ("context_logits", "generation_logits")}
    kept = {name: value for name, value in fields.items() if name not in sent or sent[name] & outputs}
    return {**kept, "prefix_tokens": PREFIX_TOKENS if "prefix_ids" in outputs else 0}


def _refuse(name: str, values: np.ndarray) -> None:
    if name in _UNSUPPORTED_ALWAYS or any(values.flat):
        raise RequestError("UNSUPPORTED", f"input {name} is not supported by this model; leave it out")


def _scalar(name: str, values: np.ndarray) -> Any:
    if values.size != 1:
        raise RequestError("INVALID_ARG", f"input {name} holds {values.size} values a row; wanted 1")
    return values.item()


def _list(name: str, values: np.ndarray) -> list:
    return values.ravel().tolist()


def _array(name: str, values: np.ndarray) -> np.ndarray:
    return values


def _top_p(name: str, values: np.ndarray) -> float:
    value = _scalar(name, values)
    if not np.isfinite(value):
        raise RequestError("INVALID_ARG", f"input {name} is {value}; wanted a finite number")
    return min(max(value, 0.0), 1.0)


def _end_id(name: str, values: np.ndarray) -> int | None:
    value = _scalar(name, values)
    if value < -1:
        raise RequestError("INVALID_ARG", f"input {name} is {value}; wanted -1 or more")
    return None if value < 0 else value


def _least_tokens(name: str, values: np.ndarray) -> int:
    value = _scalar(name, values)
    if value < 0:
        raise RequestError("INVALID_ARG", f"input {name} is {value}; wanted 0 or more")
    return max(1, value)


def _ngram_size(name: str, values: np.ndarray) -> int:
    value = _scalar(name, values)
    return 0 if value >= NGRAM_SIZE_OFF else value


def _early_stopping(name: str, values: np.ndarray) -> int:
    return int(_scalar(name, values))


def word_list(name: str, values: np.ndarray) -> list[list[int]]:
    """Words of a [2, n] tensor: token ids end to end, over their cumulative end offsets, padded with -1."""
    if values.ndim != 2 or len(values) != 2:
        raise RequestError("INVALID_ARG", f"input {name} has the shape {list(values.shape)} a row; wanted [2, n]")
    tokens, offsets = values.tolist()
    count = offsets.index(-1) if -1 in offsets else len(offsets)
    if any(offset != -1 for offset in offsets[count:]):
        raise RequestError("INVALID_ARG", f"input {name} has end offsets after the first -1; wanted -1 to the end")
    begin, words = 0, []
    for end in offsets[:count]:
        if not begin < end <= len(tokens):
            raise RequestError(
                "INVALID_ARG",
                f"input {name} has the end offset {end} after {begin}; wanted rising offsets of at most {len(tokens)}",
            )
        words.append(tokens[begin:end])
        begin = end
    return words


# Input -> (how a row is read, field of the request or what else of _Row).
_FIELDS: dict[str, tuple[Callable[[str, np.ndarray], Any], str]] = {
    "input_ids": (_list, "input_ids"),
    "input_lengths": (_scalar, "more.input_length"),
    "request_output_len": (_scalar, "max_tokens"),
    "num_return_sequences": (_scalar, "num_return_sequences"),
    "end_id": (_end_id, "end_id"),
    "ignore_eos": (_scalar, "more.ignore_eos"),
    "stop_words_list": (word_list, "stop_words"),
    "bad_words_list": (word_list, "bad_words"),
    "embedding_bias": (_list, "embedding_bias"),
    "beam_width": (_scalar, "beam_width"),
    "temperature": (_scalar, "temperature"),
    "runtime_top_k": (_scalar, "top_k"),
    "runtime_top_p": (_top_p, "top_p"),
    "runtime_top_p_min": (_scalar, "top_p_min"),
    "runtime_top_p_decay": (_scalar, "top_p_decay"),
    "runtime_top_p_reset_ids": (_scalar, "top_p_reset_id"),
    "min_p": (_scalar, "min_p"),
    "len_penalty": (_scalar, "length_penalty"),
    "early_stopping": (_early_stopping, "early_stopping"),
    "beam_search_diversity_rate": (_scalar, "beam_search_diversity_rate"),
    "repetition_penalty": (_scalar, "repetition_penalty"),
    "presence_penalty": (_scalar, "presence_penalty"),
    "frequency_penalty": (_scalar, "frequency_penalty"),
    "prompt_ignore_length": (_scalar, "prompt_ignore_length"),
    "no_repeat_ngram_size": (_ngram_size, "no_repeat_ngram_size"),
    "min_length": (_least_tokens, "min_tokens"),
    "min_tokens": (_least_tokens, "min_tokens"),
    "random_seed": (_scalar, "seed"),
    "seed": (_scalar, "seed"),
    "priority": (_scalar, "priority"),
    "draft_input_ids": (_list, "draft_tokens"),
    "draft_logits": (_list, "draft_logits"),
    "draft_acceptance_threshold": (_scalar, "draft_acceptance_threshold"),
    "stop_after_draft_tokens": (_scalar, "stop_after_drafts"),
    "continued_tokens": (_scalar, "continued_tokens"),
    "prompt_embedding_table": (_array, "prompt_table.prompt_embedding_table"),
    "prompt_table_extra_ids": (_list, "prompt_table.prompt_table_extra_ids"),
    "prompt_vocab_size": (_scalar, "prompt_table.prompt_vocab_size"),
    "retention_token_range_starts": (_list, "retention.range_starts"),
    "retention_token_range_ends": (_list, "retention.range_ends"),
    "retention_token_range_priorities": (_list, "retention.range_priorities"),
    "retention_token_range_durations_ms": (_list, "retention.range_durations_ms"),
    "retention_decode_priority": (_scalar, "retention.decode_priority"),
    "retention_decode_duration_ms": (_scalar, "retention.decode_duration_ms"),
    "return_log_probs": (_scalar, "log_probs"),
    "return_context_logits": (_scalar, "context_logits"),
    "return_generation_logits": (_scalar, "generation_logits"),
    "return_perf_metrics": (_scalar, "more.perf_metrics"),
    "return_num_input_tokens": (_scalar, "more.num_input_tokens"),
    "return_num_output_tokens": (_scalar, "more.num_output_tokens"),
    "exclude_input_in_output": (_scalar, "exclude_input"),
    "streaming": (_scalar, "streaming"),
}
_IGNORED = {"stop", "pad_id", "decoder_input_ids", "decoder_input_lengths", "return_kv_cache_reuse_stats"}
_IGNORED |= {"START", "END", "CORRID"}
# Where even a zero means something; others may be sent as 0, false or an empty text.
_UNSUPPORTED_ALWAYS = {"lora_task_id", "lora_weights", "lora_config", "encoder_input_features", "context_phase_params"}
_UNSUPPORTED_ALWAYS |= {"cross_attention_mask", "mrope_rotary_cos_sin", "mrope_position_deltas"}
