"""The engine model of a Triton server, asked over gRPC: one stream an order, ended by leaving the loop.

It speaks the protocol's messages directly: the client library's own objects cost as much time a token as the transport.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inflight.openai.errors import from_engine, from_stream
from inflight.openai.stream import RequestStream

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_MOST_TOKENS = 2**31 - 1

_DTYPES: dict[str, tuple[str, type]] = {
    "end_id": ("INT32", np.int32),
    "num_return_sequences": ("INT32", np.int32),
    "temperature": ("FP32", np.float32),
    "runtime_top_p": ("FP32", np.float32),
    "runtime_top_k": ("INT32", np.int32),
    "min_p": ("FP32", np.float32),
    "presence_penalty": ("FP32", np.float32),
    "frequency_penalty": ("FP32", np.float32),
    "prompt_ignore_length": ("INT32", np.int32),
    "repetition_penalty": ("FP32", np.float32),
    "min_tokens": ("INT32", np.int32),
    "seed": ("UINT64", np.uint64),
    "ignore_eos": ("BOOL", np.bool_),
}
_LOGITS = {"FP32": np.float32, "FP16": np.float16}


@dataclass(frozen=True)
class Order:
    """One prompt and how its answers are wanted. sampling: scalar inputs of the model by name. max_tokens: None for all
    that the sequence limit leaves. stream: pieces as they come, else each answer whole. bias: token id to what is
    added to its logit, for a vocabulary of `vocabulary` tokens."""

    prompt: Sequence[int]
    max_tokens: int | None
    sequences: int = 1
    sampling: Mapping[str, float] = field(default_factory=dict)
    bias: Mapping[int, float] = field(default_factory=dict)
    vocabulary: int = 0
    stream: bool = True
    log_probs: bool = False
    logits: bool = False
    context_logits: bool = False


@dataclass(frozen=True)
class Piece:
    """New tokens of one answer. finish_reason: stop or length in an answer's last piece, else empty.

    log_probs: of the tokens, when asked for. logits: [tokens, vocabulary]. context_logits: [prompt, vocabulary], in the
    first piece; row i is about prompt token i + 1.
    """

    sequence: int
    tokens: list[int]
    finish_reason: str
    log_probs: list[float]
    logits: np.ndarray | None
    context_logits: np.ndarray | None


class Engine:
    """`url`: HOST:PORT of the server's gRPC. Close it at the end."""

    def __init__(self, url: str, model: str):
        self.url = url
        self.model = model
        self._channel = grpc.aio.insecure_channel(url, _OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._ending: set[asyncio.Task] = set()

    async def close(self) -> None:
        """Waits for streams that are about to end."""
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._channel.close()

    async def is_ready(self) -> bool:
        try:
            answer = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=self.model), timeout=5)
        except grpc.aio.AioRpcError:
            return False
        return answer.ready

    async def config(self) -> object:
        """The model's configuration (a ModelConfig message). Raises ApiError."""
        try:
            answer = await self._stub.ModelConfig(service_pb2.ModelConfigRequest(name=self.model), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise from_engine(error) from None
        return answer.config

    async def answer(self, order: Order) -> AsyncGenerator[Piece, None]:
        """The pieces of all answers, as they come. Raises ApiError."""
        message = _message(self.model, order)
        stream = RequestStream(self._stub.ModelStreamInfer(), message, _stop_order(message))
        try:
            async with aclosing(stream.messages()) as answers:
                async for answer in answers:
                    if answer.error_message:
                        raise from_stream(answer.error_message)
                    if answer.infer_response.outputs:  # else it only tells that it is the last one
                        yield _piece(answer.infer_response)
        except grpc.aio.AioRpcError as error:
            raise from_engine(error) from None
        finally:
            self._end_aside(stream)

    def _end_aside(self, stream: RequestStream) -> None:
        task = asyncio.create_task(stream.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _message(model: str, order: Order) -> service_pb2.ModelInferRequest:
    most = _MOST_TOKENS if order.max_tokens is None else min(order.max_tokens, _MOST_TOKENS)
    message = _request(model, uuid.uuid4().hex, order.prompt, most)
    for parameter in ("error_codes", "triton_enable_empty_final_response"):
        message.parameters[parameter].bool_param = True
    for name, value in {**order.sampling, "num_return_sequences": order.sequences}.items():
        dtype, kind = _DTYPES[name]
        _add(message, name, dtype, np.array([[value]], kind))
    if order.bias:
        _add(message, "embedding_bias", "FP32", _dense(order.bias, order.vocabulary))
    switches = _switches(order)
    for name in switches:
        _add(message, name, "BOOL", np.array([[True]]))
    for name in ("output_ids", "sequence_length", "finish_reason", *_outputs(order)):
        message.outputs.add().name = name
    return message


def _stop_order(message: service_pb2.ModelInferRequest) -> service_pb2.ModelInferRequest:
    stop = _request(message.model_name, message.id, [0], 1)
    _add(stop, "stop", "BOOL", np.array([[True]]))
    return stop


def _request(model: str, id_: str, prompt: Sequence[int], max_tokens: int) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=model, id=id_)
    _add(message, "input_ids", "INT32", np.array([prompt], np.int32))
    _add(message, "input_lengths", "INT32", np.array([[len(prompt)]], np.int32))
    _add(message, "request_output_len", "INT32", np.array([[max_tokens]], np.int32))
    return message


def _switches(order: Order) -> list[str]:
    wanted = {
        "exclude_input_in_output": True,
        "streaming": order.stream,
        "return_log_probs": order.log_probs,
        "return_generation_logits": order.logits,
        "return_context_logits": order.context_logits,
    }
    return [name for name, on in wanted.items() if on]


def _outputs(order: Order) -> list[str]:
    wanted = {
        "sequence_index": order.sequences > 1,
        "output_log_probs": order.log_probs,
        "generation_logits": order.logits,
        "context_logits": order.context_logits,
    }
    return [name for name, on in wanted.items() if on]


def _dense(bias: Mapping[int, float], vocabulary: int) -> np.ndarray:
    tensor = np.zeros((1, vocabulary), np.float32)
    tensor[0, list(bias)] = list(bias.values())
    return tensor


def _add(message: service_pb2.ModelInferRequest, name: str, dtype: str, array: np.ndarray) -> None:
    tensor = message.inputs.add()
    tensor.name, tensor.datatype = name, dtype
    tensor.shape.extend(array.shape)
    message.raw_input_contents.append(array.tobytes())


def _piece(answer: service_pb2.ModelInferResponse) -> Piece:
    found = {it.name: (it, raw) for it, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    count = _numbers(found, "sequence_length", np.int32)[0]
    return Piece(
        sequence=int(_numbers(found, "sequence_index", np.int32)[0]) if "sequence_index" in found else 0,
        tokens=_numbers(found, "output_ids", np.int32)[:count].tolist(),
        finish_reason=found["finish_reason"][1][4:].decode(),  # behind its length, 4 bytes
        log_probs=_numbers(found, "output_log_probs", np.float32).tolist(),
        logits=_rows(found, "generation_logits"),
        context_logits=_rows(found, "context_logits"),
    )


def _numbers(found: Mapping[str, tuple], name: str, dtype: type) -> np.ndarray:
    return np.frombuffer(found[name][1] if name in found else b"", dtype)


def _rows(found: Mapping[str, tuple], name: str) -> np.ndarray | None:
    if name not in found:
        return None
    tensor, raw = found[name]
    return np.frombuffer(raw, _LOGITS[tensor.datatype]).reshape(-1, tensor.shape[-1])
