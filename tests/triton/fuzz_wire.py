"""Random requests to a live server, over HTTP and gRPC: each is answered, the server stays healthy and keeps nothing.

As a program: --cases N --seed S, with a server of its own; --first I starts at a case, --show prints the errors' texts.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fuzz_requests import Declared, Model, grpc_request, json_body, sound_tensors
from inflight.soak.watch import Memory, held_back
from inflight.soak.wire import Addresses, Wire

MODELS = ("tensorrt_llm", "tensorrt_llm", "inflight_text", "inflight_text", "ensemble", "tensorrt_llm_bls")
PATIENCE_S = 120.0
CONCURRENCY = 16
MOST_FINDINGS = 10
MOST_GROWTH = 32 << 20  # bytes of memory in the second half
MOST_MEMORY = 4 << 30
# What a client's request must never bring about, in the text of an error.
WORDS_OF_A_FINDING = re.compile(r"\[INTERNAL\]|Stub process|Traceback|std::|bad_alloc|[Ii]nternal error")


@dataclass
class Fuzz:
    """`counts`: answers by protocol and kind. `errors`: their texts, numbers left out. `findings`: what must not be."""

    counts: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def refused(self, protocol: str, text: str) -> str:
        """The finding, if the text is one."""
        self.counts[f"{protocol} refused"] += 1
        self.errors[re.sub(r"-?\d[\d.e+]*", "#", text)[:160]] += 1
        return text[:600] if WORDS_OF_A_FINDING.search(text) else ""


class Fuzzer:
    """Asks one server. `inputs`: of each model, as the server declares them."""

    def __init__(self, addresses: Addresses, channel: grpc.aio.Channel, inputs: dict[str, Model]):
        self.fuzz = Fuzz()
        self._host, port = addresses.http.rsplit(":", 1)
        self._port = int(port)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._inputs = inputs

    async def ask(self, seed: int, case: int) -> None:
        """Half of the cases over each protocol."""
        rng = random.Random(f"{seed} {case}")
        model = rng.choice(MODELS)
        protocol, ask = ("HTTP", self._ask_http) if case % 2 else ("gRPC", self._ask_grpc)
        if finding := await ask(rng, model):
            self.fuzz.findings.append(f"{protocol}, {model}, seed {seed}, case {case}: {finding}")

    async def sound_answers(self) -> dict[str, bytes]:
        """What each model says to a request that is right."""
        answers = {}
        for model in self._inputs:
            request = service_pb2.ModelInferRequest(model_name=model)
            for name, (dtype, shape, data) in sound_tensors(model).items():
                request.inputs.add(name=name, datatype=dtype, shape=shape)
                request.raw_input_contents.append(data)
            try:
                (answer,) = [it async for it in self._stream(request)]
            except grpc.aio.AioRpcError as error:
                answers[model] = str(error.code()).encode()
                continue
            raw = answer.infer_response.raw_output_contents
            names = [it.name for it in answer.infer_response.outputs]
            wanted = "output_ids" if "output_ids" in names else "text_output"
            answers[model] = raw[names.index(wanted)] if wanted in names else answer.error_message.encode()
        return answers

    async def _stream(
        self, request: service_pb2.ModelInferRequest
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        call = self._stub.ModelStreamInfer(timeout=PATIENCE_S)
        await call.write(request)
        await call.done_writing()
        async for answer in call:
            yield answer

    async def _ask_grpc(self, rng: random.Random, model: str) -> str:
        request = grpc_request(rng, model, self._inputs[model])
        error, outputs = "", 0
        try:
            async for answer in self._stream(request):
                outputs += len(answer.infer_response.outputs)
                error = answer.error_message or error
        except grpc.aio.AioRpcError as failure:
            error = f"{failure.code()} {failure.details()}"
            if failure.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                return error
        if error:
            return self.fuzz.refused("gRPC", error)
        # A stop order for an id ends all requests of that id, empty where nothing has come yet.
        return self._answered("gRPC", model, outputs > 0 or bool(request.id), {it.name for it in request.inputs})

    async def _ask_http(self, rng: random.Random, model: str) -> str:
        body = json_body(rng, model, self._inputs[model])
        path = rng.choice(("generate", "generate_stream", "generate_stream", "infer"))
        head = f"POST /v2/models/{model}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        try:
            status, answer = await self._exchange(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        except (asyncio.TimeoutError, OSError, EOFError) as error:
            return f"{error!r} to {path} {body[:300]!r}"
        if status == b"200" and b'{"error":' not in answer:
            return self._answered("HTTP", model, b'"model_name"' in answer, _keys(body))
        return self.fuzz.refused("HTTP", answer.decode(errors="replace"))

    def _answered(self, protocol: str, model: str, with_content: bool, names: set[str]) -> str:
        self.fuzz.counts[f"{protocol} {'answered' if with_content else 'empty'}"] += 1
        # Server 2.51 starts no step of an ensemble that lacks an input, and says nothing.
        lacking = model == "ensemble" and not names.issuperset(sound_tensors(model))
        return "" if with_content or lacking or "stop" in names else f"nothing at all to {sorted(names)}"

    async def _exchange(self, message: bytes) -> tuple[bytes, bytes]:
        """Status and body. Raises EOFError when the connection ends before its end."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 24)
        try:
            writer.write(message)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            length = re.search(rb"content-length: *(\d+)", head.lower())
            rest = reader.readexactly(int(length[1])) if length else reader.readuntil(b"0\r\n\r\n")
            return head.split()[1], await asyncio.wait_for(rest, PATIENCE_S)
        finally:
            writer.transport.abort()


def _keys(body: bytes) -> set[str]:
    return set(re.findall(r'"(\w+)":', body.decode(errors="replace")))


async def declared_inputs(channel: grpc.aio.Channel, model: str) -> Model:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=model))
    return {it.name: Declared(it.datatype, tuple(it.shape[1:])) for it in metadata.inputs}


async def fuzz_server(
    addresses: Addresses, cases: int, seed: int, first: int = 0, pid: int | None = None, period: int = 5000
) -> Fuzz:
    """`pid`: of the server, where its memory counts. Says every `period` cases how far it is."""
    memory = Memory(pid) if pid else None
    async with grpc.aio.insecure_channel(addresses.grpc) as channel:
        fuzzer = Fuzzer(addresses, channel, {model: await declared_inputs(channel, model) for model in MODELS})
        fuzz, before = fuzzer.fuzz, await fuzzer.sound_answers()
        left = iter(range(first, first + cases))

        async def ask_on() -> None:
            for case in left:
                await fuzzer.ask(seed, case)
                if case % period == period - 1:
                    size = f", {memory.samples[-1][1] >> 20} MiB" if memory else ""
                    print(case + 1, "cases", dict(fuzz.counts), f"{len(fuzz.findings)} findings{size}", flush=True)
                if memory and memory.samples[-1][1] > MOST_MEMORY:
                    fuzz.findings.append(f"{memory.samples[-1][1] >> 20} MiB of memory around case {case}")
                if len(fuzz.findings) >= MOST_FINDINGS:
                    return

        watching = asyncio.create_task(memory.watch()) if memory else None
        await asyncio.gather(*(ask_on() for _ in range(CONCURRENCY)))
        if watching:
            watching.cancel()
            if memory.growth > MOST_GROWTH:
                fuzz.findings.append(f"memory grew by {memory.growth / 2**20:.1f} MiB in the second half")
        after = await fuzzer.sound_answers()
        fuzz.findings += [
            f"{model} says {after[model]!r}, before {before[model]!r}"
            for model in before
            if after[model] != before[model]
        ]
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
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    models = Path(__file__).resolve().parents[1] / "demo_model"
    with tempfile.TemporaryDirectory() as folder:
        repository = fill_repository(
            Path(folder) / "models",
            plan.ensure(models / "python-7m"),
            models / "python-7m",
            draft_engine_dir=plan.ensure(models / "python-1m"),
            kv_cache_cpu_memory_bytes=1 << 25,
            kv_cache_host_memory_bytes=1 << 23,
            max_beam_width=4,
            max_sequence_length=256,
        )
        with TritonServer(repository) as server:
            ports = server.ports
            addresses = Addresses(*(f"127.0.0.1:{port}" for port in (ports.grpc, ports.http, ports.metrics)))
            fuzz = asyncio.run(fuzz_server(addresses, args.cases, args.seed, args.first, server.pid))
            code = server.exit_code
    if args.show:
        print("\n".join(f"{count:7d} {text}" for text, count in fuzz.errors.most_common()))
    print(f"{args.cases} cases over the wire: {dict(fuzz.counts)}")
    print("\n".join(fuzz.findings) or "no findings")
    return 1 if fuzz.findings or code is not None else 0


if __name__ == "__main__":
    sys.exit(main())
