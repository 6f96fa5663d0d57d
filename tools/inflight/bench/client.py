"""One client process: many gRPC streams to a running server, one a request.

It speaks the protocol's messages directly: at thousands of answers a second the client library's own objects cost as
much processor time as the transport.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inflight.bench.drive import drive
from inflight.bench.measure import Timeline
from inflight.bench.workload import Workload
from inflight.errors import InflightError
from inflight.tokenizer import Tokenizer

ENGINE_MODEL = "tensorrt_llm"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True)
class Target:
    """tokenizer: folder; text models (ensemble, BLS) need it, the engine model takes token ids."""

    url: str
    model: str
    vocabulary: int
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Part:
    """What one process measured. busy: share of the time that its processor was at work; near 1, it held up the run."""

    timelines: list[Timeline]
    busy: float = 0.0


def run(target: Target, workload: Workload, start_together: Callable[[], object]) -> Part:
    """Answers of the full output length. `start_together` returns when all processes are ready.

    Raises InflightError with the server's text.
    """
    messages = _messages(target, workload)
    try:
        return asyncio.run(_run(target, workload, messages, start_together))
    except grpc.aio.AioRpcError as error:
        raise InflightError(f"{target.url}: {error.details()}") from None


async def _run(target: Target, workload: Workload, messages: list, start_together: Callable[[], object]) -> Part:
    async with grpc.aio.insecure_channel(target.url, _OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if messages:  # connect, and find a wrong address before the clock runs
            await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=target.model))
        start_together()
        start, processor = time.perf_counter(), time.process_time()
        timelines = await drive(workload, lambda index, sent: _ask(stub, messages[index], sent))
        busy = (time.process_time() - processor) / (time.perf_counter() - start)
    return Part(timelines, busy)


async def _ask(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, message: service_pb2.ModelInferRequest, sent: float
) -> Timeline:
    call = stub.ModelStreamInfer()
    await call.write(message)
    await call.done_writing()
    first = last = tokens = first_tokens = 0
    async for answer in call:
        if answer.error_message:
            raise InflightError(f"model {message.model_name}: {answer.error_message}")
        count = _tokens_in(answer.infer_response)
        if count:
            last = time.perf_counter()
            tokens += count
            first, first_tokens = first or last, first_tokens or count
    if not tokens:
        raise InflightError(f"model {message.model_name}: a stream ended without any token")
    return Timeline(sent, first, last, tokens, first_tokens)


def _tokens_in(answer: service_pb2.ModelInferResponse) -> int:
    """A text model's pieces do not say how many tokens they hold: one each, as the engine streams."""
    for index, output in enumerate(answer.outputs):
        if output.name == "sequence_length":
            return int(np.frombuffer(answer.raw_output_contents[index], np.int32).sum())
        if output.name == "text_output":
            return 1
    return 0


def _messages(target: Target, workload: Workload) -> list[service_pb2.ModelInferRequest]:
    prompts = workload.prompts(target.vocabulary)
    outputs = [output for _, output in workload.lengths]
    if target.model == ENGINE_MODEL:
        return [_engine_message(*pair) for pair in zip(prompts, outputs, strict=True)]
    if target.tokenizer is None:
        raise InflightError(f"model {target.model} takes text; a model without a tokenizer wants {ENGINE_MODEL}")
    tokenizer = Tokenizer.from_folder(target.tokenizer)
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    return [_text_message(target.model, *pair) for pair in zip(texts, outputs, strict=True)]


def _engine_message(prompt: list[int], output: int) -> service_pb2.ModelInferRequest:
    message = _message(ENGINE_MODEL)
    _add(message, "input_ids", "INT32", [1, len(prompt)], np.array(prompt, np.int32).tobytes())
    _add(message, "input_lengths", "INT32", [1, 1], np.int32(len(prompt)).tobytes())
    _add(message, "request_output_len", "INT32", [1, 1], np.int32(output).tobytes())
    _add(message, "streaming", "BOOL", [1, 1], b"\x01")
    for name in ("output_ids", "sequence_length"):
        message.outputs.add().name = name
    return message


def _text_message(model: str, text: str, output: int) -> service_pb2.ModelInferRequest:
    message, encoded = _message(model), text.encode()
    _add(message, "text_input", "BYTES", [1, 1], len(encoded).to_bytes(4, "little") + encoded)
    _add(message, "max_tokens", "INT32", [1, 1], np.int32(output).tobytes())
    _add(message, "stream", "BOOL", [1, 1], b"\x01")
    _add(message, "ignore_eos", "BOOL", [1, 1], b"\x01")
    return message


def _message(model: str) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=model)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def _add(message: service_pb2.ModelInferRequest, name: str, dtype: str, shape: list[int], data: bytes) -> None:
    tensor = message.inputs.add()
    tensor.name, tensor.datatype = name, dtype
    tensor.shape.extend(shape)
    message.raw_input_contents.append(data)
