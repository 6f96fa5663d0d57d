"""The engine executor from Python: requests in, tokens out, many in flight.

    with Executor("engines/python-7m") as executor:
        handle = executor.submit(Request(input_ids=[5, 17, 3], max_tokens=64, streaming=True))
        for result in handle:                    # or: async for result in handle
            print(result.tokens)

The work is done by the C++ executor (inflight_batcher/api); no Python runs between two tokens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inflight import _executor, plan
from inflight.errors import InflightError

Retention = _executor.Retention
RetentionRange = _executor.RetentionRange

_POLL_SECONDS = 0.25  # how long a wait keeps an interrupt (Ctrl-C) from being seen

CAPACITY_POLICIES = {
    "guaranteed_no_evict": _executor.CapacityPolicy.GUARANTEED_NO_EVICT,
    "max_utilization": _executor.CapacityPolicy.MAX_UTILIZATION,
}


class ExecutorError(InflightError):
    """The executor refused or failed a request; `code` is one of the names in ERROR_CODES."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code


# In the order of the C++ enumeration inflight::ErrorCode.
ERROR_CODES = ("internal", "not_found", "invalid_argument", "unavailable", "unsupported", "already_exists", "cancelled")


@dataclasses.dataclass
class Request:
    """One prompt to continue. The fields are those of inflight_batcher/api/request.h, flat; None = not given."""

    input_ids: list[int]
    max_tokens: int = 16
    streaming: bool = False
    exclude_input: bool = True
    end_id: int | None = None
    num_return_sequences: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    top_p_decay: float = 1.0
    top_p_min: float = 1e-6
    top_p_reset_id: int = 1
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt_ignore_length: int = 0
    no_repeat_ngram_size: int = 0
    min_tokens: int = 1
    stop_words: list[list[int]] = dataclasses.field(default_factory=list)
    bad_words: list[list[int]] = dataclasses.field(default_factory=list)
    embedding_bias: list[float] = dataclasses.field(default_factory=list)
    log_probs: bool = False
    context_logits: bool = False
    generation_logits: bool = False
    perf_metrics: bool = False
    additional_outputs: list[str] = dataclasses.field(default_factory=list)
    prefix_tokens: int = 0
    beam_width: int = 1
    length_penalty: float = 0.0
    early_stopping: int = 1
    beam_search_diversity_rate: float = 0.0
    prompt_embedding_table: np.ndarray | None = None  # [n, hidden size]: ids from the vocabulary's size on
    prompt_table_extra_ids: list[int] = dataclasses.field(default_factory=list)
    retention_ranges: list[RetentionRange] = dataclasses.field(default_factory=list)
    retention_decode: Retention = dataclasses.field(default_factory=Retention)
    priority: float = 0.5
    draft_tokens: list[int] = dataclasses.field(default_factory=list)
    draft_logits: list[float] = dataclasses.field(default_factory=list)  # [draft tokens, vocabulary], flat
    draft_acceptance_threshold: float | None = None
    stop_after_drafts: bool = False
    continued_tokens: int = 0
    timeout_seconds: float = 0.0


def _native_request(request: Request) -> _executor.Request:
    native = _executor.Request()
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.name == "timeout_seconds":
            native.timeout = datetime.timedelta(seconds=value)
            continue
        if field.name == "prompt_embedding_table":
            _set_prompt_table(native, value)
            continue
        target = next(part for part in (native, native.sampling, native.output) if hasattr(part, field.name))
        try:
            setattr(target, field.name, value)
        except TypeError:
            raise ExecutorError("invalid_argument", f"{field.name} is {value!r}, of the wrong type") from None
    return native


def _set_prompt_table(native: _executor.Request, table: np.ndarray | None) -> None:
    if table is None:
        return
    array = np.ascontiguousarray(table, np.float32)
    if array.ndim != 2:
        raise ExecutorError("invalid_argument", f"prompt_embedding_table has shape {array.shape}, wanted [n, hidden]")
    native.set_prompt_embedding_table(array)


@dataclasses.dataclass
class Beam:
    """One hypothesis of a beam search: all its tokens, their log probs after penalties, bans and temperature, their sum
    (an end id's counted), and score = sum / length ** length_penalty. generation_logits: float32 [tokens, vocabulary].
    """

    tokens: list[int]
    finish_reason: str
    num_generated_tokens: int
    log_probs: list[float]
    cum_log_prob: float
    score: float
    generation_logits: np.ndarray


@dataclasses.dataclass
class Result:
    """A piece of the answer to one sequence: with streaming the new tokens of a step, else all of them.

    Logits are float32 arrays: context_logits [prompt, vocabulary], generation_logits [tokens, vocabulary];
    additional_outputs (final result): marked output -> [computed tokens, width]. With beam_width > 1 `beams` are the
    best hypotheses so far, best first, whole in every result, and the other fields are those of the first.
    """

    sequence_index: int
    final: bool
    finish_reason: str
    tokens: list[int]
    prefix_tokens: list[int]
    log_probs: list[float]
    cum_log_prob: float
    beams: list[Beam]
    num_generated_tokens: int
    context_logits: np.ndarray
    generation_logits: np.ndarray
    additional_outputs: dict[str, np.ndarray]
    perf: _executor.PerfMetrics


def _beam(native: _executor.BeamResult, vocabulary: int) -> Beam:
    fields = {field.name: getattr(native, field.name) for field in dataclasses.fields(Beam)}
    return Beam(**{**fields, "generation_logits": native.generation_logits(vocabulary)})


class Handle:
    """A submitted request: iterate (or asynchronously iterate) over its results, or cancel it.

    Iterating raises ExecutorError when a sequence fails, with code "cancelled" after cancel(); iterating on gives the
    results of the request's other sequences. A handle whose results have been taken iterates over nothing.
    """

    def __init__(self, executor: Executor, request: Request):
        self._executor = executor
        self._request = request
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: asyncio.Event | None = None
        try:
            self._loop = asyncio.get_running_loop()
            self._arrived = asyncio.Event()
        except RuntimeError:
            pass  # no event loop here: the handle is iterated synchronously
        notify = self._notify if self._loop else None
        self._ended = False
        self.id, self._queue = _call(executor._native.submit, _native_request(request), notify)

    def _notify(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.set)

    def _convert(self, native: _executor.Result) -> Result:
        self._ended = native.request_final
        if native.failed:
            raise ExecutorError(ERROR_CODES[native.error_code], native.error)
        vocabulary = self._executor.model.vocabulary_size
        return Result(
            sequence_index=native.sequence_index,
            final=native.sequence_final,
            finish_reason=native.finish_reason,
            tokens=native.tokens,
            prefix_tokens=native.prefix_tokens,
            log_probs=native.log_probs,
            cum_log_prob=native.cum_log_prob,
            beams=[_beam(beam, vocabulary) for beam in native.beams],
            num_generated_tokens=native.num_generated_tokens,
            context_logits=native.context_logits(vocabulary),
            generation_logits=native.generation_logits(vocabulary),
            additional_outputs={name: native.additional_output(name) for name in native.additional_output_names},
            perf=native.perf,
        )

    def __iter__(self) -> Iterator[Result]:
        while not self._ended:
            native = self._queue.get(_POLL_SECONDS)
            if native is not None:
                yield self._convert(native)

    async def __aiter__(self) -> AsyncIterator[Result]:
        if self._arrived is None:
            raise ExecutorError("invalid_argument", "submitted outside an event loop: iterate without async")
        while not self._ended:
            native = self._queue.get_nowait()
            if native is None:
                await self._arrived.wait()
                self._arrived.clear()
            else:
                yield self._convert(native)

    def tokens(self) -> list[int]:
        """Waits for the end and returns all tokens of the only sequence."""
        return [token for result in self for token in result.tokens]

    def cancel(self) -> None:
        _call(self._executor._native.cancel, self.id)


class Executor:
    """A plan bound to this machine's devices, with the batch manager on top.

    `engine` is a folder with plan.json or a plain Hugging Face checkpoint. Keyword arguments are the fields of
    ExecutorConfig (inflight_batcher/api/executor_config.h); those of its KvCacheConfig carry the prefix `kv_cache_`;
    capacity_policy is "guaranteed_no_evict" or "max_utilization".
    """

    def __init__(self, engine: str | Path, **config: Any):
        self._native = _call(_executor.Executor, str(plan.ensure(engine)), _native_config(config))
        self.model: _executor.ModelInfo = self._native.model

    def submit(self, request: Request) -> Handle:
        """Queues a request. Raises ExecutorError (invalid_argument, unavailable, unsupported)."""
        return Handle(self, request)

    def generate(self, request: Request) -> list[int]:
        """Submits and waits: the tokens of a request with one sequence."""
        return self.submit(request).tokens()

    def stats(self) -> dict[str, int]:
        """A snapshot of the counters in inflight_batcher/api/executor.h (ExecutorStats)."""
        return _call(self._native.stats)

    def close(self) -> None:
        """Cancels what is in flight and gives the memory back."""
        self._native.close()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _native_config(fields: dict[str, Any]) -> _executor.ExecutorConfig:
    native = _executor.ExecutorConfig()
    for name, value in fields.items():
        target, field = (
            (native.kv_cache, name.removeprefix("kv_cache_")) if name.startswith("kv_cache_") else (native, name)
        )
        if not hasattr(target, field):
            raise ExecutorError("invalid_argument", f"unknown executor setting {name!r}")
        if name == "capacity_policy":
            if value not in CAPACITY_POLICIES:
                raise ExecutorError(
                    "invalid_argument", f"capacity_policy is {value!r}, wanted {list(CAPACITY_POLICIES)}"
                )
            value = CAPACITY_POLICIES[value]
        try:
            setattr(target, field, value)
        except TypeError:
            raise ExecutorError("invalid_argument", f"{name} is {value!r}, of the wrong type") from None
    return native


def _call(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except _executor.ExecutorError as error:
        code, text = error.args
        raise ExecutorError(ERROR_CODES[code], text) from None
