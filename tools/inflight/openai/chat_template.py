"""Chat templates: messages to one text, as transformers' `apply_chat_template` renders them, without transformers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inflight.errors import CheckpointError

_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class TemplateError(Exception):
    """The template refuses these messages, or fails on them."""


class ChatTemplate:
    """`source`: Jinja text. `special_tokens`: names such as bos_token, for the template's use."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None):
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the chat template is not valid Jinja: {error}") from error
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def from_folder(cls, folder: Path, file: Path | None = None) -> ChatTemplate | None:
        """`file`, else chat_template.jinja, else the one in tokenizer_config.json; None when there is none."""
        config = _read_config(folder)
        source = _source(folder, config, file)
        return None if source is None else cls(source, _special_tokens(config))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """`variables`: further names that the template may use. Raises TemplateError."""
        values = {"tools": None, "documents": None, **self._special_tokens, **(variables or {})}
        values |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(values)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise TemplateError(str(error)) from error
        except RecursionError as error:
            raise TemplateError("the messages are nested too deeply") from error


class _GenerationBlock(Extension):
    """`{% generation %}`: marks the assistant's part for training; here just what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes what means something in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _source(folder: Path, config: Mapping[str, Any], file: Path | None) -> str | None:
    file = file or folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {it["name"]: it["template"] for it in found}.get("default")
    return found


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {f"{kind}_token": config.get(f"{kind}_token") for kind in _SPECIAL_TOKENS}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
