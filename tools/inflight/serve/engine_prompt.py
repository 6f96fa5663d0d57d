"""Inputs of the engine model that make sense together only: prompt embedding tables and how long KV blocks are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inflight.executor import Retention, RetentionRange
from inflight.serve.model_support import RequestError

MOST_PRIORITY = 100


def prompt_table_fields(values: Mapping[str, Any], length: int, padded_length: int) -> dict[str, Any]:
    """Fields of the request; `length`: of the prompt. Raises RequestError."""
    table: np.ndarray | None = values.get("prompt_embedding_table")
    rows = 0 if table is None else len(table)
    if (size := values.get("prompt_vocab_size", 0)) > rows or size < 0:
        raise RequestError(
            "INVALID_ARG", f"input prompt_vocab_size is {size}; wanted 0 to the {rows} rows of prompt_embedding_table"
        )
    extra_ids = values.get("prompt_table_extra_ids", [])
    if len(extra_ids) == padded_length:
        extra_ids = extra_ids[:length]
    if extra_ids and len(extra_ids) != length:
        raise RequestError(
            "INVALID_ARG",
            f"input prompt_table_extra_ids has {len(extra_ids)} values; wanted as many as the prompt's {length} tokens",
        )
    return {
        "prompt_embedding_table": None if table is None else table[: size or rows].astype(np.float32),
        "prompt_table_extra_ids": extra_ids,
    }


def retention_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the request. Raises RequestError."""
    starts, ends, priorities, durations = (values.get(f"range_{it}", []) for it in _RANGES)
    counts = [len(starts), len(ends), len(priorities), len(durations)]
    if not counts[0] == counts[1] == counts[2] or counts[3] not in (0, counts[0]):
        raise RequestError(
            "INVALID_ARG",
            "inputs retention_token_range_starts, _ends, _priorities and _durations_ms have "
            f"{', '.join(map(str, counts))} values; wanted equally many (no durations: for ever)",
        )
    ranges = zip(starts, ends, priorities, durations or [-1] * len(starts), strict=True)
    decode = Retention()
    if "decode_priority" in values:
        decode.priority = _priority("decode_priority", values["decode_priority"])
    if "decode_duration_ms" in values:
        decode.duration_ms = _duration("decode_duration_ms", values["decode_duration_ms"])
    return {"retention_ranges": [_range(*it) for it in ranges], "retention_decode": decode}


_RANGES = ("starts", "ends", "priorities", "durations_ms")


def _range(start: int, end: int, priority: int, duration_ms: int) -> RetentionRange:
    if start < 0:
        raise RequestError("INVALID_ARG", f"input retention_token_range_starts is {start}; wanted 0 or more")
    if end != -1 and end <= start:
        raise RequestError(
            "INVALID_ARG",
            f"input retention_token_range_ends is {end}; wanted more than the start {start}, or -1 for the end",
        )
    return RetentionRange(
        start,
        None if end == -1 else end,
        _priority("token_range_priorities", priority),
        _duration("token_range_durations_ms", duration_ms),
    )


def _priority(name: str, value: int) -> int:
    if not 0 <= value <= MOST_PRIORITY:
        raise RequestError("INVALID_ARG", f"input retention_{name} is {value}; wanted 0 to {MOST_PRIORITY}")
    return value


def _duration(name: str, value: int) -> int | None:
    if value < -1:
        raise RequestError("INVALID_ARG", f"input retention_{name} is {value}; wanted 0 or more, or -1 for no end")
    return None if value == -1 else value
