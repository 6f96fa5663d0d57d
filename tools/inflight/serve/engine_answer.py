"""The executor's results as the engine model's outputs, each with the batch dimension 1 in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from inflight.executor import Beam, Result
from inflight.serve.engine_request import EngineRow

Arrays = dict[str, np.ndarray]


def engine_outputs(row: EngineRow, rows: int, result: Result, logits_dtype: np.dtype) -> Arrays:
    """`rows`: of the whole request. output_ids comes first: some clients count on it."""
    parts = result.beams or [result]
    outputs = {
        "output_ids": _padded([it.tokens for it in parts], np.int32),
        "sequence_length": np.array([[len(it.tokens) for it in parts]], np.int32),
        "prefix_ids": np.array([[result.prefix_tokens] * len(parts)], np.int32),
        "sequence_final": np.array([[result.final]]),
        "finish_reason": np.array([[result.finish_reason.encode()]], object),
    }
    if rows > 1:
        outputs["batch_index"] = np.array([[row.index]], np.int32)
    if row.request.num_return_sequences > 1:
        outputs["sequence_index"] = np.array([[result.sequence_index]], np.int32)
    if row.num_input_tokens:
        outputs["num_input_tokens"] = np.array([[len(row.request.input_ids)]], np.int32)
    if row.num_output_tokens:
        outputs["num_output_tokens"] = np.array([[_generated(row, result)]], np.int32)
    if row.request.log_probs:
        outputs["cum_log_probs"] = np.array([[it.cum_log_prob for it in parts]], np.float32)
        outputs["output_log_probs"] = _padded([it.log_probs for it in parts], np.float32)
    if result.context_logits.size:
        outputs["context_logits"] = result.context_logits[None].astype(logits_dtype)
    if (logits := _generation_logits(row, result)).size:
        outputs["generation_logits"] = logits[None].astype(logits_dtype)
    return outputs | (_perf_outputs(result) if row.perf_metrics else {})


def _generated(row: EngineRow, result: Result) -> int:
    if result.beams:
        return result.beams[0].num_generated_tokens
    return len(result.tokens) - (len(row.request.input_ids) if row.includes_input else 0)


def _padded(rows: Sequence[Sequence[float]], dtype: type) -> np.ndarray:
    """[1, rows, longest], padded with -1."""
    array = np.full((1, len(rows), max(map(len, rows))), -1, dtype)
    for place, values in zip(array[0], rows, strict=True):
        place[: len(values)] = values
    return array


def _generation_logits(row: EngineRow, result: Result) -> np.ndarray:
    """[beams, longest, vocabulary], or [longest, beams, vocabulary] in a stream; zeros behind a shorter beam's end."""
    parts: Sequence[Beam | Result] = result.beams or [result]
    logits = [it.generation_logits for it in parts]
    if not any(it.size for it in logits):
        return np.empty(0, np.float32)
    array = np.zeros((len(parts), max(map(len, logits)), max(it.shape[-1] for it in logits)), np.float32)
    for place, values in zip(array, logits, strict=True):
        place[: len(values)] = values
    return array.swapaxes(0, 1) if row.request.streaming else array


# Output -> (dtype, its value).
_PERF: dict[str, tuple[type, Callable]] = {
    "kv_cache_alloc_new_blocks": (np.int32, lambda perf: perf.kv_alloc_new_blocks),
    "kv_cache_reused_blocks": (np.int32, lambda perf: perf.kv_reused_blocks),
    "kv_cache_alloc_total_blocks": (np.int32, lambda perf: perf.kv_alloc_total_blocks),
    "arrival_time_ns": (np.int64, lambda perf: perf.arrival_time_ns),
    "first_scheduled_time_ns": (np.int64, lambda perf: perf.first_scheduled_time_ns),
    "first_token_time_ns": (np.int64, lambda perf: perf.first_token_time_ns),
    "last_token_time_ns": (np.int64, lambda perf: perf.last_token_time_ns),
    "acceptance_rate": (np.float32, lambda perf: perf.accepted_draft_tokens / max(perf.draft_tokens, 1)),
    "total_accepted_draft_tokens": (np.int32, lambda perf: perf.accepted_draft_tokens),
    "total_draft_tokens": (np.int32, lambda perf: perf.draft_tokens),
}


def _perf_outputs(result: Result) -> Arrays:
    return {name: np.array([[value(result.perf)]], dtype) for name, (dtype, value) in _PERF.items()}
