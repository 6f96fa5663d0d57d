"""Errors in OpenAI's form: an HTTP status, and a body that says what was wrong."""

from __future__ import annotations

import re

import grpc
from pydantic import ValidationError

INVALID = "invalid_request_error"
SERVER = "server_error"
_SHOWN = 80  # characters of a refused value that the text repeats

# gRPC's name of the engine model's error -> HTTP status, type, code.
_OF_ENGINE = {
    "INVALID_ARGUMENT": (400, INVALID, None),
    "UNIMPLEMENTED": (400, INVALID, "unsupported"),
    "UNAVAILABLE": (503, SERVER, "service_unavailable"),
    "NOT_FOUND": (503, SERVER, "service_unavailable"),
    "CANCELLED": (503, SERVER, "cancelled"),
    "DEADLINE_EXCEEDED": (504, SERVER, "timeout"),
}
_FULL_QUEUE = "maximum queue size"  # both in the executor's text and in the server's
# What the server itself says in a stream, without a code, of a model that does not take requests now.
_ABSENT = ("unknown model", "not ready", "no available versions", "stopping", "unloading")
_CODE = re.compile(r"\[([A-Z_]+)\] ")


class ApiError(Exception):
    """Answered as {"error": {...}} with `status`. `param`: the field of the request that is to blame."""

    def __init__(
        self, status: int, message: str, kind: str = INVALID, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code

    @property
    def body(self) -> dict:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, INVALID, param, code)


def from_engine(error: grpc.aio.AioRpcError) -> ApiError:
    """What the server said instead of an answer, or that it is not there."""
    return _of_engine(error.code().name, error.details() or error.code().name)


def from_stream(text: str) -> ApiError:
    """An error inside a stream: its code stands before the engine model's own texts."""
    if found := _CODE.match(text):
        return _of_engine(found[1], text[found.end() :])
    absent = any(it in text for it in _ABSENT)
    return _of_engine("UNAVAILABLE" if absent else "INTERNAL", text)


def _of_engine(code: str, text: str) -> ApiError:
    if _FULL_QUEUE in text.lower():
        return ApiError(429, text, "rate_limit_error", code="rate_limit_exceeded")
    status, kind, name = _OF_ENGINE.get(code, (500, SERVER, None))
    return ApiError(status, text, kind, code=name)


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request's body."""
    found = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return invalid(f"Unrecognized request argument supplied: {place}", place)
    if found["type"] in ("missing", "json_invalid"):
        return invalid(f"{place}: {found['msg']}" if place else found["msg"], place or None)
    text = found["msg"].removeprefix("Value error, ")
    return invalid(f"{place}: {text}; found {_shown(found['input'])}" if place else text, place or None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
