"""A running server under load, over gRPC streaming: the engine model (token ids) or a text model (ensemble, BLS)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import tritonclient.grpc.aio as grpc

from inflight.bench.measure import Timeline, Workload
from inflight.errors import InflightError
from inflight.tokenizer import Tokenizer

ENGINE_MODEL = "tensorrt_llm"


def run(url: str, model: str, tokenizer: Tokenizer, workload: Workload) -> tuple[list[Timeline], float]:
    """Timelines of all requests, and the seconds from the first request to the last token."""
    return asyncio.run(_run(url, model, tokenizer, workload))


async def _run(url: str, model: str, tokenizer: Tokenizer, workload: Workload) -> tuple[list[Timeline], float]:
    prompts = iter(workload.prompts())
    timelines: list[Timeline] = []

    async def client() -> None:
        async with grpc.InferenceServerClient(url) as connection:
            for prompt in prompts:
                timelines.append(
                    await _ask(connection, model, _inputs(model, prompt, tokenizer, workload.output_length))
                )

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(workload.concurrency)))
    return timelines, time.perf_counter() - start


async def _ask(connection: grpc.InferenceServerClient, model: str, inputs: list[grpc.InferInput]) -> Timeline:
    timeline = Timeline(time.perf_counter())
    outputs = [grpc.InferRequestedOutput("output_ids"), grpc.InferRequestedOutput("sequence_length")]

    async def one_request() -> AsyncIterator[dict]:
        yield dict(
            model_name=model,
            inputs=inputs,
            outputs=outputs if model == ENGINE_MODEL else None,
            enable_empty_final_response=True,
        )

    async for result, error in connection.stream_infer(one_request()):
        if error is not None:
            raise InflightError(f"model {model}: {error}")
        count = _tokens_in(result, model)
        if count:
            timeline.arrivals.append((time.perf_counter(), count))
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    return timeline


def _tokens_in(result: grpc.InferResult, model: str) -> int:
    """A text model's pieces do not say how many tokens they hold: one each, as the engine streams."""
    if model != ENGINE_MODEL:
        return int(result.as_numpy("text_output") is not None)
    lengths = result.as_numpy("sequence_length")
    return 0 if lengths is None else int(lengths.sum())


def _inputs(model: str, prompt: list[int], tokenizer: Tokenizer, output_length: int) -> list[grpc.InferInput]:
    if model == ENGINE_MODEL:
        return [
            _input("input_ids", np.array([prompt], np.int32), "INT32"),
            _input("input_lengths", np.array([[len(prompt)]], np.int32), "INT32"),
            _input("request_output_len", np.array([[output_length]], np.int32), "INT32"),
            _input("streaming", np.array([[True]]), "BOOL"),
        ]
    return [
        _input("text_input", np.array([[tokenizer.decode(prompt).encode()]], object), "BYTES"),
        _input("max_tokens", np.array([[output_length]], np.int32), "INT32"),
        _input("stream", np.array([[True]]), "BOOL"),
        _input("ignore_eos", np.array([[True]]), "BOOL"),
    ]


def _input(name: str, values: np.ndarray, dtype: str) -> grpc.InferInput:
    tensor = grpc.InferInput(name, values.shape, dtype)
    tensor.set_data_from_numpy(values)
    return tensor
