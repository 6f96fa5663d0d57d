"""Requests drawn at random, most of them right but for a few tensors: of any type, shape, length and value."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2

MOST_NESTED = 10_000  # lists in lists: some 100,000 overflow the stack of server 2.51's JSON reader, and it dies
MOST_ELEMENTS = 4096
TYPES = {
    **{"INT32": "<i4", "FP32": "<f4", "BOOL": "u1", "UINT64": "<u8", "INT64": "<i8", "FP64": "<f8", "UINT8": "u1"},
    **{"FP16": "<f2", "BF16": "<u2", "NOPE": "<u2", "BYTES": ""},
}
SOUND_TOKENS = {
    "input_ids": ("INT32", [1, 3], np.array([5, 6, 7], np.int32).tobytes()),
    "input_lengths": ("INT32", [1, 1], np.int32(3).tobytes()),
    "request_output_len": ("INT32", [1, 1], np.int32(4).tobytes()),
}
SOUND_TEXT = {
    "text_input": ("BYTES", [1, 1], b"\x06\0\0\0def f("),
    "max_tokens": ("INT32", [1, 1], np.int32(3).tobytes()),
}
SOUND_JSON = {
    "tensorrt_llm": {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": 4},
    "text": {"text_input": "def f(", "max_tokens": 3},
}
NUMBERS = (0, 1, -1, 2, 3, 7, 40, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**64 - 1)
REALS = (0.0, -0.0, 0.5, 1.5, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3.4e38, -1e30)
TEXTS = ("", "x", "def f(", "\u0000", "é😀", "a" * 3000, "\ud800", "{}", "json")


@dataclass(frozen=True)
class Declared:
    """An input as the server declares it. `dims`: behind the batch."""

    dtype: str
    dims: tuple[int, ...]


Model = dict[str, Declared]  # by the input's name


def sound_tensors(model: str) -> dict[str, tuple[str, list[int], bytes]]:
    """What most of a request is made of, so that the rest of it is looked at."""
    return dict(SOUND_TOKENS if model == "tensorrt_llm" else SOUND_TEXT)


def grpc_request(rng: random.Random, model: str, inputs: Model) -> service_pb2.ModelInferRequest:
    tensors = sound_tensors(model)
    if rng.random() < 0.05:
        tensors.pop(rng.choice(list(tensors)))
    for name in _names(rng, inputs):
        tensors[name] = _tensor(rng, inputs.get(name))
    request = service_pb2.ModelInferRequest(model_name=model, id=rng.choice(("", "", "twice", "é" * 40)))
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["error_codes"].bool_param = True
    if rng.random() < 0.05:
        request.parameters["request_type"].string_param = rng.choice(("context_only", "?", ""))
    for name, (dtype, shape, data) in tensors.items():
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = name, dtype
        tensor.shape.extend(shape)
        request.raw_input_contents.append(data)
    if rng.random() < 0.02 and request.raw_input_contents:
        request.raw_input_contents.pop()
    return request


def json_body(rng: random.Random, model: str, inputs: Model) -> bytes:
    fields = dict(SOUND_JSON.get(model, SOUND_JSON["text"]))
    for name in _names(rng, inputs):
        fields[name] = _declared_json(rng, inputs[name]) if name in inputs and rng.random() < 0.7 else _json_value(rng)
    if rng.random() < 0.05:
        fields.pop(rng.choice(list(fields)))
    body = json.dumps(fields).encode()
    if rng.random() < 0.1:  # bytes flipped, cut or doubled
        place = rng.randrange(len(body))
        body = rng.choice((body[:place], body[:place] + rng.randbytes(2) + body[place + 1 :], body + body[place:]))
    return b"[" * MOST_NESTED if rng.random() < 0.001 else body


def _names(rng: random.Random, inputs: Model) -> list[str]:
    return rng.sample([*sorted(inputs), "surprise"], rng.choice((0, 1, 1, 2, 2, 3, 5)))


def _number(rng: random.Random) -> float | int:
    return rng.choice(REALS) if rng.random() < 0.3 else rng.choice(NUMBERS)


def _raw(rng: random.Random, dtype: str, count: int) -> bytes:
    if dtype == "BYTES":
        texts = [rng.randbytes(rng.randint(0, 12)) for _ in range(count)]
        lengths = [len(text) if rng.random() < 0.95 else rng.choice((0, 5, 2**31, 2**32 - 1)) for text in texts]
        return b"".join(length.to_bytes(4, "little") + text for length, text in zip(lengths, texts, strict=True))
    kind = np.dtype(TYPES[dtype])
    with np.errstate(all="ignore"):
        if kind.kind == "f":
            return np.array([_number(rng) for _ in range(count)], np.float64).astype(kind).tobytes()
        size = kind.itemsize
        numbers = (rng.choice(NUMBERS[:6] if rng.random() < 0.6 else NUMBERS) for _ in range(count))
        return b"".join((number & (256**size - 1)).to_bytes(size, "little") for number in numbers)


def _tensor(rng: random.Random, declared: Declared | None) -> tuple[str, list[int], bytes]:
    known = declared is not None and rng.random() < 0.9
    dtype = declared.dtype if known else rng.choice(list(TYPES))
    lengths = (1, 1, 2, 3, 8, 0)
    if known and rng.random() < 0.9:
        shape = [1] + [rng.choice(lengths) if dim < 0 else dim for dim in declared.dims]
    else:
        shape = [1] + [rng.choice(lengths) for _ in range(rng.choice((1, 1, 1, 2, 0, 3)))]
    data = _raw(rng, dtype, min(int(np.prod(shape)), MOST_ELEMENTS))
    if rng.random() < 0.05:
        # Server 2.51: a python model's process dies of a tensor without elements whose other lengths multiply too far.
        shape[rng.randrange(len(shape))] = rng.choice((-1, 0, 5, 2**31) if 0 in shape else (-1, 5, 2**31, 2**62))
    if rng.random() < 0.05:
        data = data[: rng.randint(0, len(data))] + rng.randbytes(rng.randint(0, 5))
    return dtype, shape, data


def _declared_json(rng: random.Random, declared: Declared) -> object:
    def one() -> object:
        if declared.dtype == "BYTES":
            return rng.choice(TEXTS)
        if declared.dtype == "BOOL":
            return rng.random() < 0.5
        return rng.choice(REALS[:4] if declared.dtype.startswith("FP") else NUMBERS[:6])

    return one() if declared.dims == (1,) else [one() for _ in range(rng.randint(0, 6))]


def _json_value(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return _number(rng)
    if kind < 6:
        return rng.choice((None, True, *TEXTS))
    if kind < 8:
        return [_json_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {"a": _json_value(rng, depth + 1)}
