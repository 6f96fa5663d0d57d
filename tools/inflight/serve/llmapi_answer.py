"""The executor's results as the outputs of the llmapi model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from inflight.detokenizer import TextStream
from inflight.executor import Handle, Result
from inflight.openai.stops import StopFinder
from inflight.serve.llmapi_request import Order
from inflight.tokenizer import Tokenizer

NOTHING = "None"  # clients of the LLM API's model expect a text where there is no reason


class SequenceAnswer:
    """The text of one sequence so far, which ends before the first stop word in it."""

    def __init__(self, tokenizer: Tokenizer, order: Order):
        self._tokens = TextStream(tokenizer)
        self._stops = StopFinder(order.stop_words)
        self.text = self._tokens.push(order.request.input_ids) if order.includes_prompt else ""
        self.last: Result | None = None
        self.ended = False

    def push(self, result: Result) -> bool:
        """Whether there is something new to say."""
        before = len(self.text)
        self.text += self._stops.push(self._tokens.push(result.tokens, result.final), result.final)
        self.ended = result.final or self._stops.stopped
        self.last = result
        return self.ended or len(self.text) > before

    @property
    def finish_reason(self) -> str:
        return "stop" if self._stops.stopped else self.last.finish_reason or NOTHING

    @property
    def stop_reason(self) -> str:
        return self._stops.found or NOTHING


class Answers:
    """All sequences of one request, of which the likeliest is the answer."""

    def __init__(self, tokenizer: Tokenizer, order: Order, tokens_per_block: int):
        self._order = order
        self._tokens_per_block = tokens_per_block
        self._sequences = [SequenceAnswer(tokenizer, order) for _ in range(order.request.num_return_sequences)]
        self.ended = False

    def responses(self, handle: Handle) -> Iterator[dict[str, np.ndarray]]:
        """Outputs of each response by name: with streaming the text so far, else all of it once. Raises ExecutorError.
        The last one comes with `ended`; to leave before the executor's end cancels the request there."""
        try:
            for result in handle:
                sequence = self._sequences[result.sequence_index]
                has_news = not sequence.ended and sequence.push(result)
                self.ended = all(it.ended for it in self._sequences)
                if self.ended or (self._order.streaming and has_news):
                    yield self._outputs()
                if self.ended:
                    return
        finally:
            handle.cancel()

    def _outputs(self) -> dict[str, np.ndarray]:
        best = max(self._sequences, key=lambda it: it.last.cum_log_prob)
        outputs = {"text_output": _text(best.text)}
        if self._order.finish_reason:
            outputs["finish_reason"] = _text(best.finish_reason)
        if self._order.stop_reason:
            outputs["stop_reason"] = _text(best.stop_reason)
        if self._order.cumulative_logprob:
            outputs["cumulative_logprob"] = np.array([best.last.cum_log_prob], np.float32)
        if self._order.perf_metrics:
            outputs |= self._perf_metrics(best.last.perf)
        return outputs

    def _perf_metrics(self, perf: Any) -> dict[str, np.ndarray]:
        prompt_blocks = -(-len(self._order.request.input_ids) // self._tokens_per_block)
        values = {
            "kv_cache_reused_block": np.int32(perf.kv_reused_blocks),
            "kv_cache_missed_block": np.int32(max(prompt_blocks - perf.kv_reused_blocks, 0)),
            "kv_cache_alloc_new_blocks": np.int32(perf.kv_alloc_new_blocks),
            "kv_cache_alloc_total_blocks": np.int32(perf.kv_alloc_total_blocks),
            "kv_cache_hit_rate": np.float32(perf.kv_reused_blocks / prompt_blocks),
            "arrival_time_ns": np.int64(perf.arrival_time_ns),
            "first_scheduled_time_ns": np.int64(perf.first_scheduled_time_ns),
            "first_token_time_ns": np.int64(perf.first_token_time_ns),
            "last_token_time_ns": np.int64(perf.last_token_time_ns),
            "acceptance_rate": np.float32(perf.accepted_draft_tokens / max(perf.draft_tokens, 1)),
            "total_accepted_draft_tokens": np.int32(perf.accepted_draft_tokens),
            "total_draft_tokens": np.int32(perf.draft_tokens),
        }
        return {name: np.array([value]) for name, value in values.items()}


def _text(text: str) -> np.ndarray:
    return np.array([text.encode()], object)
