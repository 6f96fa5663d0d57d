"""What a soak asks: prompts with lengths and sampling, and requests that a server must refuse."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from tritonclient.grpc import service_pb2

ENGINE_MODEL = "tensorrt_llm"
SHARED_PREFIX = 40  # tokens that every second prompt begins with, so that the prefix cache has something to find
_DTYPES = {"INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64, "BOOL": np.bool_}


@dataclass(frozen=True)
class Case:
    """A request with one right answer: greedy, or sampled with a seed. `prompt`: token ids, or text for text models."""

    prompt: tuple[int, ...] | str
    max_tokens: int
    sampling: tuple[tuple[str, str, float], ...] = ()  # name, dtype, value


@dataclass
class Message:
    """A request of either protocol: (dtype, values of one row) by tensor name. A value may be a list or one element."""

    model: str
    tensors: dict[str, tuple[str, object]] = field(default_factory=dict)

    def with_tensors(self, **tensors: tuple[str, object]) -> Message:
        return Message(self.model, {**self.tensors, **tensors})

    def as_grpc(self, request_id: str = "") -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest(model_name=self.model, id=request_id)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for name, (dtype, value) in self.tensors.items():
            tensor = request.inputs.add()
            tensor.name, tensor.datatype = name, dtype
            shape, data = _row(dtype, value)
            tensor.shape.extend(shape)
            request.raw_input_contents.append(data)
        return request

    def as_json(self) -> dict:
        return {name: value for name, (_, value) in self.tensors.items()}


def _row(dtype: str, value: object) -> tuple[list[int], bytes]:
    if dtype == "BYTES":
        text = str(value).encode()
        return [1, 1], len(text).to_bytes(4, "little") + text
    row = np.array(value, _DTYPES[dtype]).reshape(1, -1) if np.ndim(value) < 2 else np.array([value], _DTYPES[dtype])
    return list(row.shape), row.tobytes()


def message(model: str, case: Case, streaming: bool) -> Message:
    if model == ENGINE_MODEL:
        tensors = {
            "input_ids": ("INT32", list(case.prompt)),
            "input_lengths": ("INT32", len(case.prompt)),
            "request_output_len": ("INT32", case.max_tokens),
            "streaming": ("BOOL", streaming),
        }
    else:
        tensors = {
            "text_input": ("BYTES", case.prompt),
            "max_tokens": ("INT32", case.max_tokens),
            "stream": ("BOOL", streaming),
        }
    sampling = {_name(name, model): (dtype, value) for name, dtype, value in case.sampling}
    return Message(model, tensors | sampling)


def _name(name: str, model: str) -> str:
    return name if model == ENGINE_MODEL else name.removeprefix("runtime_")


def draw_cases(count: int, vocabulary: int, longest: int, rng: random.Random) -> list[Case]:
    """Token prompts and answers of 1 to `longest` tokens each, a half of them sampled."""
    shared = [rng.randrange(vocabulary) for _ in range(SHARED_PREFIX)]
    cases = []
    for index in range(count):
        prompt = [rng.randrange(vocabulary) for _ in range(rng.randint(1, longest))]
        if index % 2:
            prompt = (shared + prompt)[:longest]
        sampling = ()
        if rng.random() < 0.5:
            top_k, temperature = rng.randint(2, 60), round(rng.uniform(0.5, 1.5), 2)
            sampling = (
                ("runtime_top_k", "INT32", top_k),
                ("temperature", "FP32", temperature),
                ("seed", "UINT64", rng.getrandbits(40)),
            )
        cases.append(Case(tuple(prompt), rng.randint(1, longest), sampling))
    return cases


def refused(model: str, valid: Message, rng: random.Random) -> Message:
    """The request with one thing wrong that the server must name."""
    length = "request_output_len" if model == ENGINE_MODEL else "max_tokens"
    faults: list[dict[str, tuple[str, object]]] = [
        {length: ("INT32", 0)},
        {length: ("INT32", -5)},
        {"temperature": ("FP32", float("nan"))},
        {"repetition_penalty": ("FP32", 0.0)},
        {"surprise": ("INT32", 1)},
        {length: ("FP32", 3.0)},
    ]
    if model == ENGINE_MODEL:
        faults += [
            {"input_ids": ("INT32", [1 << 30]), "input_lengths": ("INT32", 1)},
            {"input_ids": ("INT32", [1] * 100_000), "input_lengths": ("INT32", 100_000)},
            {"input_lengths": ("INT32", 0)},
            {"stop_words_list": ("INT32", [[1, 2, 3], [3, 1, -1]])},
        ]
    return valid.with_tensors(**rng.choice(faults))
