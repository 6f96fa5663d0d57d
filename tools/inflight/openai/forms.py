"""The objects of answers: whole ones and the chunks of streams."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

from inflight.openai.choice import Delta
from inflight.openai.logprobs import chat_object, completion_object
from inflight.openai.requests import Body, ChatBody, CompletionBody
from inflight.tokenizer import Tokenizer


def usage_object(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class Form:
    """What both interfaces share. A stream's chunks name the usage (null but in the last) only when it is wanted."""

    prefix: str
    whole_kind: str
    chunk_kind: str

    def __init__(self, body: Body, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._wants_usage = body.includes_usage
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}

    def whole(self, deltas: Iterable[Delta], usage: dict[str, int]) -> dict[str, Any]:
        """deltas: one a choice, in order."""
        choices = [self.whole_choice(delta) for delta in deltas]
        return {**self._head, "object": self.whole_kind, "choices": choices, "usage": usage}

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        return [self._chunk([choice]) for choice in self.chunk_choices(delta)]

    def last_chunks(self, usage: dict[str, int]) -> list[dict[str, Any]]:
        return [{**self._chunk([]), "usage": usage}] if self._wants_usage else []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_kind, "choices": choices}
        return {**chunk, "usage": None} if self._wants_usage else chunk

    def whole_choice(self, delta: Delta) -> dict[str, Any]:
        raise NotImplementedError

    def chunk_choices(self, delta: Delta) -> list[dict[str, Any]]:
        raise NotImplementedError


class ChatForm(Form):
    prefix, whole_kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: ChatBody, tokenizer: Tokenizer):
        super().__init__(body, tokenizer)
        self._wants_logprobs = bool(body.logprobs)
        self._begun: set[int] = set()

    def whole_choice(self, delta: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return self._choice(delta, "message", message, delta.finish_reason)

    def chunk_choices(self, delta: Delta) -> list[dict[str, Any]]:
        """The role first, the finish reason last, each in a chunk of its own."""
        choices = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            choices.append(_bare(delta.index, {"role": "assistant", "content": ""}))
        if delta.text or delta.entries:
            choices.append(self._choice(delta, "delta", {"content": delta.text}, None))
        if delta.finish_reason:
            choices.append(_bare(delta.index, {}, delta.finish_reason))
        return choices

    def _choice(self, delta: Delta, key: str, value: dict, reason: str | None) -> dict[str, Any]:
        entries = chat_object(delta.entries, self._tokenizer) if self._wants_logprobs else None
        return {"index": delta.index, key: value, "logprobs": entries, "finish_reason": reason}


class CompletionForm(Form):
    prefix, whole_kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, body: CompletionBody, tokenizer: Tokenizer):
        super().__init__(body, tokenizer)
        self._logprobs = body.logprobs

    def whole_choice(self, delta: Delta) -> dict[str, Any]:
        entries = None
        if self._logprobs is not None:
            entries = completion_object(delta.entries, self._tokenizer, with_likeliest=self._logprobs > 0)
        return {"index": delta.index, "text": delta.text, "logprobs": entries, "finish_reason": delta.finish_reason}

    def chunk_choices(self, delta: Delta) -> list[dict[str, Any]]:
        return [self.whole_choice(delta)]


def _bare(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
