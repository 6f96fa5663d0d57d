"""The bodies of requests, checked: OpenAI's fields with OpenAI's ranges, and a few sampling fields of our own.

A field that would change the answer and that this server cannot honour is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from inflight.openai.errors import invalid

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_CHOICES = 1024  # answers of one request: prompts x n
DEFAULT_COMPLETION_TOKENS = 16

# Values with which a field changes nothing. Any other asks for what this server does not do.
_NEUTRAL: dict[str, tuple] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "suffix": (None, ""),
    "best_of": (None, 1),
}


def _stops(value: object) -> list[str]:
    words = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise ValueError("wanted a string or a list of strings, none of them empty")
    if len(words) > MAX_STOPS or any(len(word) > MAX_STOP_CHARACTERS for word in words):
        raise ValueError(f"wanted at most {MAX_STOPS} strings of at most {MAX_STOP_CHARACTERS} characters")
    return words


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(it) is int for it in value)


def _prompts(value: object) -> list[str | list[int]]:
    if isinstance(value, str) or _is_ids(value):
        return [value]
    rows = value if isinstance(value, list) else []
    if rows and (all(isinstance(it, str) for it in rows) or all(map(_is_ids, rows))):
        return rows
    raise ValueError("wanted a string, a list of strings, a list of token ids or a list of such lists, none empty")


def _biases(value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(it, int | float) for it in value.values()):
        raise ValueError("wanted an object of token ids and numbers")
    if not all(key.isascii() and key.isdigit() for key in value):
        raise ValueError("wanted token ids as keys")
    if not all(-100 <= it <= 100 for it in value.values()):
        raise ValueError("wanted values from -100 to 100")
    return {int(key): float(it) for key, it in value.items()}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class Body(BaseModel):
    """What chat and text completions share."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    continues_prompt: ClassVar[bool]  # the answer's text goes on where the prompt's ends

    model: str
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[list[str], BeforeValidator(_stops)] = []
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_biases)] = {}
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    # The engine's own.
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool = True
    # Nothing here depends on them.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Body:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    def require_supported(self) -> None:
        """Raises ApiError for a field that asks for what this server does not do."""
        for name, neutral in _NEUTRAL.items():
            if getattr(self, name, None) not in neutral:
                raise invalid(f"{name} is not supported by this server; leave it out", name, "unsupported")

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Message(BaseModel):
    """A turn of a chat; further fields (name, tool_calls ...) go to the template as they are."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Annotated[str, Field(min_length=1)]
    content: str | list[dict[str, Any]] | None = None

    def for_template(self) -> dict[str, Any]:
        """Content as one text. Raises ValueError for parts that are no text."""
        fields = {name: value for name, value in self.model_extra.items() if value is not None}
        return {"role": self.role, "content": self._text(), **fields}

    def _text(self) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"a content part of type {part.get('type')!r}; this model takes text")
        return "\n".join(part["text"] for part in self.content)


class ChatBody(Body):
    continues_prompt = False
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = {}
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is only allowed when logprobs is true")
        if self.max_tokens == 0:
            raise ValueError("max_tokens is 0, wanted at least 1")
        if self.choices > MAX_CHOICES:
            raise ValueError(f"n is {self.choices}, wanted at most {MAX_CHOICES}")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionBody(Body):
    continues_prompt = True
    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    add_special_tokens: bool = True
    suffix: Any = None
    best_of: Any = None

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionBody:
        if len(self.prompt) * self.choices > MAX_CHOICES:
            raise ValueError(f"{len(self.prompt)} prompts with n {self.choices}: wanted at most {MAX_CHOICES} answers")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, wanted at least 1 unless echo is true")
        return self

    @property
    def limit(self) -> int:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
