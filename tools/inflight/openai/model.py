"""The model that is served: its names, its tokenizer and chat template, its sizes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inflight.errors import InflightError
from inflight.openai.chat_template import ChatTemplate
from inflight.openai.engine import Engine
from inflight.openai.errors import ApiError, invalid
from inflight.tokenizer import Tokenizer, tokenizer_folder, vocabulary_size

_UNFILLED = re.compile(r"\$\{\w+\}")
# A text of this many characters takes about a millisecond; a longer one is encoded beside the event loop.
_SHORT = 1000


@dataclass(frozen=True)
class ServedModel:
    """names: what requests may call it; answers repeat theirs. streams: whether the engine model sends pieces.
    vocabulary: entries of the logits. most_tokens: of prompt and answer; most_characters: no prompt that fits
    has more. None: unknown here, the engine will tell."""

    names: Sequence[str]
    tokenizer: Tokenizer
    template: ChatTemplate | None
    streams: bool
    vocabulary: int
    most_tokens: int | None = None
    most_characters: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Raises ApiError, before the work, for a text that no tokenization makes short enough."""
        if self.most_characters is not None and len(text) > self.most_characters:
            text = f"the prompt has {len(text)} characters; this model takes at most {self.most_characters}"
            raise invalid(text, code="context_length_exceeded")
        if len(text) <= _SHORT:
            return self.tokenizer.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode_unlocked, text, add_special_tokens)

    def check_length(self, prompt_tokens: int) -> None:
        """Raises ApiError for a prompt without tokens, or one that leaves no room for an answer."""
        if prompt_tokens == 0:
            raise invalid("the prompt has no tokens, wanted at least 1")
        if self.most_tokens is not None and prompt_tokens >= self.most_tokens:
            raise invalid(
                f"the prompt has {prompt_tokens} tokens; this model takes at most {self.most_tokens - 1} "
                f"({self.most_tokens} with at least one generated)",
                code="context_length_exceeded",
            )


async def describe(
    engine: Engine, names: Sequence[str] = (), folder: Path | None = None, template: Path | None = None
) -> ServedModel:
    """Asks the server how the engine model is configured. `folder`: checkpoint or engine folder, for where the server's
    paths are not ours. Raises InflightError."""
    try:
        config = await engine.config()
    except ApiError as error:
        raise InflightError(f"{engine.url}, model {engine.model}: {error}") from None
    folders = [folder] if folder else _folders(config)
    if not folders:
        raise InflightError(
            f"{engine.url}: neither tokenizer_dir nor gpt_model_path of model {engine.model} is a folder here; "
            "name a checkpoint or engine folder with --tokenizer"
        )
    tokenizer = Tokenizer.from_folder(folders[0])
    most_tokens = _most_tokens(config, folders)
    return ServedModel(
        names=names or (_checkpoint_name(folders[-1]),),
        tokenizer=tokenizer,
        template=ChatTemplate.from_folder(tokenizer_folder(folders[0]), template),
        streams=config.model_transaction_policy.decoupled,
        vocabulary=vocabulary_size(*folders) or tokenizer.size,
        most_tokens=most_tokens,
        most_characters=None if most_tokens is None else most_tokens * tokenizer.longest_token(),
    )


def _parameter(config: object, key: str) -> str | None:
    value = config.parameters[key].string_value if key in config.parameters else ""
    return None if not value or _UNFILLED.fullmatch(value) else value


def _folders(config: object) -> list[Path]:
    """Where the server has the tokenizer and the engine, as far as they are here."""
    values = [_parameter(config, key) for key in ("tokenizer_dir", "gpt_model_path")]
    return [Path(value) for value in values if value and Path(value).is_dir()]


def _checkpoint_name(folder: Path) -> str:
    plan = _json(folder / "plan.json")
    return Path(plan["checkpoint"]["directory"]).name if plan else folder.resolve().name


def _most_tokens(config: object, folders: Sequence[Path]) -> int | None:
    if (value := _parameter(config, "max_sequence_length")) is not None and value.isdecimal():
        return int(value)
    for folder in folders:
        found = _json(folder / "plan.json").get("network", {}).get("max_positions")
        if found := found or _json(folder / "config.json").get("max_position_embeddings"):
            return found
    return None


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
