"""Random requests to a live server, over HTTP and gRPC: each is answered, the server stays healthy and keeps nothing.

As a program: --cases N --seed S, with a server of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inflight.soak.watch import held_back, resident_bytes
from inflight.soak.wire import Addresses, Wire

MODELS = ("tensorrt_llm", "ensemble")
PATIENCE_S = 60.0
CONCURRENCY = 16
MOST_NESTED = 10_000  # lists in lists: some 100,000 overflow the stack of server 2.51's JSON reader, and it dies
DTYPES = ("INT32", "FP32", "BOOL", "UINT64", "BYTES", "INT64", "FP16", "UINT8", "FP64", "BF16", "NOPE")
NAMES = {
    "tensorrt_llm": (
        "input_ids input_lengths request_output_len end_id pad_id stop_words_list bad_words_list embedding_bias "
        "beam_width temperature runtime_top_k runtime_top_p min_p repetition_penalty presence_penalty min_length seed "
        "num_return_sequences return_log_probs return_context_logits streaming stop no_repeat_ngram_size priority "
        "prompt_embedding_table prompt_table_extra_ids draft_input_ids retention_token_range_starts lora_task_id "
        "surprise"
    ),
    "ensemble": (
        "text_input max_tokens bad_words stop_words end_id top_k top_p temperature repetition_penalty seed stream stop "
        "beam_width return_log_probs embedding_bias_words embedding_bias_weights num_return_sequences ignore_eos"
    ),
}
# What most of a case is made of, so that the rest of it is looked at.
SOUND = {
    "tensorrt_llm": {
        "input_ids": ("INT32", [1, 3], np.array([5, 6, 7], np.int32).tobytes()),
        "input_lengths": ("INT32", [1, 1], np.int32(3).tobytes()),
        "request_output_len": ("INT32", [1, 1], np.int32(4).tobytes()),
    },
    "ensemble": {
        "text_input": ("BYTES", [1, 1], b"\x06\0\0\0def f("),
        "max_tokens": ("INT32", [1, 1], np.int32(3).tobytes()),
    },
}
SOUND_JSON = {
    "tensorrt_llm": {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": 4},
    "ensemble": {"text_input": "def f(", "max_tokens": 3},
}
NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**64 - 1)
REALS = (0.0, -0.0, 1.5, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3.4e38, -1e30)


@dataclass
class Fuzz:
    """`counts`: answers by protocol and kind. `findings`: what must not happen."""

    counts: Counter = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def _number(rng: random.Random) -> float | int:
    return rng.choice(REALS) if rng.random() < 0.3 else rng.choice(NUMBERS)


def _raw(rng: random.Random, dtype: str, count: int) -> bytes:
    if dtype == "BYTES":
        texts = [rng.randbytes(rng.randint(0, 12)) for _ in range(count)]
        lengths = [len(text) if rng.random() < 0.95 else rng.choice((0, 5, 2**31, 2**32 - 1)) for text in texts]
        return b"".join(length.to_bytes(4, "little") + text for length, text in zip(lengths, texts, strict=True))
    kinds = {"INT32": "<i4", "FP32": "<f4", "BOOL": "u1", "UINT64": "<u8", "INT64": "<i8", "FP64": "<f8", "UINT8": "u1"}
    kind = np.dtype(kinds.get(dtype, "<u2"))
    with np.errstate(all="ignore"):
        if kind.kind == "f":
            return np.array([_number(rng) for _ in range(count)], np.float64).astype(kind).tobytes()
        size = kind.itemsize
        return b"".join((rng.choice(NUMBERS) & (256**size - 1)).to_bytes(size, "little") for _ in range(count))


def _tensor(rng: random.Random, sound: tuple | None) -> tuple[str, list[int], bytes]:
    dtype = sound[0] if sound and rng.random() < 0.8 else rng.choice(DTYPES)
    shape = [1] + [rng.choice((1, 1, 1, 0, 2, 3, 8)) for _ in range(rng.choice((1, 1, 1, 2, 0, 3)))]
    count = min(int(np.prod(shape)), 4096)
    data = _raw(rng, dtype, count)
    if rng.random() < 0.1:
        shape[rng.randrange(len(shape))] = rng.choice((-1, 0, 5, 2**31, 2**62))
    if rng.random() < 0.1:
        data = data[: rng.randint(0, len(data))] + rng.randbytes(rng.randint(0, 5))
    return dtype, shape, data


def grpc_request(rng: random.Random, model: str) -> service_pb2.ModelInferRequest:
    tensors = dict(SOUND[model])
    if rng.random() < 0.1:
        tensors.pop(rng.choice(list(tensors)))
    for name in rng.sample(NAMES[model].split(), rng.randint(0, 3)):
        tensors[name] = _tensor(rng, SOUND[model].get(name))
    request = service_pb2.ModelInferRequest(model_name=model, id=rng.choice(("", "", "twice", "é" * 40)))
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    if rng.random() < 0.05:
        request.parameters["request_type"].string_param = rng.choice(("context_only", "?", ""))
    for name, (dtype, shape, data) in tensors.items():
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = name, dtype
        tensor.shape.extend(shape)
        request.raw_input_contents.append(data)
    if rng.random() < 0.03 and request.raw_input_contents:
        request.raw_input_contents.pop()
    return request


def _json_value(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return _number(rng)
    if kind < 6:
        return rng.choice((None, True, "", "x", "\u0000", "é😀", "a" * 3000, "\ud800", "{}"))
    if kind < 8:
        return [_json_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {"a": _json_value(rng, depth + 1)}


def json_body(rng: random.Random, model: str) -> bytes:
    fields = dict(SOUND_JSON[model])
    for name in rng.sample(NAMES[model].split(), rng.randint(0, 3)):
        fields[name] = _json_value(rng)
    if rng.random() < 0.1:
        fields.pop(rng.choice(list(fields)))
    body = json.dumps(fields).encode()
    if rng.random() < 0.2:  # bytes flipped, cut or doubled
        place = rng.randrange(len(body))
        body = rng.choice((body[:place], body[:place] + rng.randbytes(2) + body[place + 1 :], body + body[place:]))
    return b"[" * MOST_NESTED if rng.random() < 0.001 else body


async def _ask_grpc(fuzz: Fuzz, rng: random.Random, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    call = stub.ModelStreamInfer(timeout=PATIENCE_S)
    await call.write(grpc_request(rng, rng.choice(MODELS)))
    await call.done_writing()
    answers = 0
    try:
        async for answer in call:
            answers += 1
            kind = "refused" if answer.error_message else "answered"
        fuzz.counts["gRPC " + (kind if answers else "nothing")] += 1
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
            fuzz.findings.append(f"gRPC: {error.code()} {error.details()}")
        fuzz.counts["gRPC refused"] += 1


async def _ask_http(fuzz: Fuzz, rng: random.Random, address: str) -> None:
    host, port = address.rsplit(":", 1)
    model = rng.choice(MODELS)
    body, path = json_body(rng, model), rng.choice(("generate", "generate_stream", "generate_stream", "infer"))
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"POST /v2/models/{model}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode())
        writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status = (await asyncio.wait_for(reader.readline(), PATIENCE_S)).split()
        if len(status) < 2:
            fuzz.findings.append(f"HTTP: the connection ends without an answer to {path} {body[:300]!r}")
        else:
            fuzz.counts["HTTP answered" if status[1] == b"200" else "HTTP refused"] += 1
    except (asyncio.TimeoutError, ConnectionError) as error:
        fuzz.findings.append(f"HTTP: {error!r} to {path} {body[:300]!r}")
    finally:
        writer.transport.abort()


async def fuzz_server(addresses: Addresses, cases: int, seed: int, period: int = 5000) -> Fuzz:
    """Half of the cases over each protocol. Says every `period` cases how far it is."""
    fuzz, left = Fuzz(), iter(range(cases))

    async def ask_on(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
        for case in left:
            rng = random.Random(f"{seed} {case}")
            found = len(fuzz.findings)
            await (_ask_http(fuzz, rng, addresses.http) if case % 2 else _ask_grpc(fuzz, rng, stub))
            if len(fuzz.findings) > found:
                fuzz.findings[-1] += f" (seed {seed}, case {case})"
            if case and case % period == 0:
                print(case, "cases", dict(fuzz.counts), flush=True)
            if len(fuzz.findings) > 10:
                return

    async with grpc.aio.insecure_channel(addresses.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await asyncio.gather(*(ask_on(stub) for _ in range(CONCURRENCY)))
    async with Wire(addresses) as wire:
        held = await held_back(wire, PATIENCE_S)
    fuzz.findings += [f"{name} is still {value}" for name, value in held.items()]
    return fuzz


def main() -> int:
    from inflight import plan
    from inflight.serve.repository import fill_repository
    from inflight.serve.server import TritonServer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    model = Path(__file__).resolve().parents[1] / "demo_model/python-7m"
    with tempfile.TemporaryDirectory() as folder:
        repository = fill_repository(
            Path(folder) / "models", plan.ensure(model), model, kv_cache_cpu_memory_bytes=1 << 25
        )
        with TritonServer(repository) as server:
            ports, before = server.ports, resident_bytes(server.pid)
            addresses = Addresses(*(f"127.0.0.1:{port}" for port in (ports.grpc, ports.http, ports.metrics)))
            fuzz = asyncio.run(fuzz_server(addresses, args.cases, args.seed))
            after, code = resident_bytes(server.pid), server.exit_code
    print(f"{args.cases} cases over the wire: {dict(fuzz.counts)}, memory {before >> 20} to {after >> 20} MiB")
    print("\n".join(fuzz.findings) or "no findings")
    return 1 if fuzz.findings or code is not None else 0


if __name__ == "__main__":
    sys.exit(main())
