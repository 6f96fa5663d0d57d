"""What the python models of the repository share: parameters of config.pbtxt, and errors that carry Triton's codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_BOOLEANS = {
    **dict.fromkeys(("true", "1", "t", "y", "yes"), True),
    **dict.fromkeys(("false", "0", "f", "n", "no"), False),
}
_UNFILLED = re.compile(r"\$\{\w+\}")


class RequestError(Exception):
    """A request that cannot be answered. `code`: the name of a TritonError code."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code


def text_parameter(model_config: Mapping[str, Any], key: str) -> str | None:
    """A parameter's value; None when it is absent, empty or an unfilled template variable."""
    value = model_config.get("parameters", {}).get(key, {}).get("string_value", "").strip()
    return None if not value or _UNFILLED.fullmatch(value) else value


def flag_parameter(model_config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean parameter. Raises ValueError for what is no boolean."""
    value = text_parameter(model_config, key)
    if value is None:
        return default
    if value.lower() not in _BOOLEANS:
        raise ValueError(f"parameter {key} is '{value}', wanted one of {', '.join(_BOOLEANS)}")
    return _BOOLEANS[value.lower()]


def required_parameter(model_config: Mapping[str, Any], key: str) -> str:
    """A parameter that must be filled in. Raises ValueError."""
    value = text_parameter(model_config, key)
    if value is None:
        raise ValueError(f"parameter {key} of model {model_config['name']} is not filled in: fill_template.py does it")
    return value


def texts(name: str, tensor: np.ndarray) -> list[list[str]]:
    """Rows of a STRING tensor [B, n]. Raises RequestError for bytes that are not UTF-8."""
    try:
        return [[_text(item) for item in row] for row in tensor.reshape(tensor.shape[0], -1)]
    except UnicodeDecodeError as error:
        raise RequestError("INVALID_ARG", f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error


def _text(item: bytes | str) -> str:
    return item.decode("utf-8") if isinstance(item, bytes) else item
