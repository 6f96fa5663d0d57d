"""Streams of one request each, over gRPC and HTTP, at the level where a client can leave at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inflight.soak.cases import Message

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True)
class Piece:
    """One response. `content`: tokens or text. `error`: its text; then nothing follows."""

    content: list[int] | str | None
    final: bool = False
    error: str = ""


@dataclass(frozen=True)
class Addresses:
    """host:port each."""

    grpc: str
    http: str
    metrics: str


class Wire:
    """A server's addresses, for `async with`."""

    def __init__(self, addresses: Addresses):
        self._addresses = addresses

    async def __aenter__(self) -> Wire:
        self._channel = grpc.aio.insecure_channel(self._addresses.grpc, _OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._channel.close()

    async def stream(self, message: Message, request_id: str = "") -> AsyncIterator[Piece]:
        """Every response up to the end of the call. Leaving the iteration early cancels the call."""
        call = self._stub.ModelStreamInfer()
        try:
            await call.write(message.as_grpc(request_id))
            await call.done_writing()
            async for answer in call:
                yield _piece(answer)
        finally:
            call.cancel()

    async def events(self, message: Message) -> AsyncIterator[Piece]:
        """The events of /generate_stream. Leaving the iteration early resets the connection."""
        host, port = self._addresses.http.rsplit(":", 1)
        body = json.dumps(message.as_json()).encode()
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
        path = f"/v2/models/{message.model}/generate_stream"
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    yield _event(json.loads(line.removeprefix(b"data: ")))
        finally:
            writer.transport.abort()

    async def metrics(self) -> dict[str, float]:
        """Samples by name and labels."""
        host, port = self._addresses.metrics.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
        try:
            writer.write(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            text = (await reader.read()).decode()
        finally:
            writer.transport.abort()
        lines = (line.strip() for line in text.split("\r\n\r\n", 1)[1].splitlines())
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(("nv_", "inflight_")))
        return {name: float(value) for name, value in pairs}


def _piece(answer: service_pb2.ModelStreamInferResponse) -> Piece:
    if answer.error_message:
        return Piece(None, error=answer.error_message)
    response = answer.infer_response
    final = response.parameters["triton_final_response"].bool_param
    raw = {it.name: data for it, data in zip(response.outputs, response.raw_output_contents, strict=True)}
    if "text_output" in raw:
        return Piece(raw["text_output"][4:].decode(), final)
    if "output_ids" not in raw:
        return Piece(None, final)
    length = int(np.frombuffer(raw["sequence_length"], np.int32)[0])
    return Piece(np.frombuffer(raw["output_ids"], np.int32)[:length].tolist(), final)


def _event(event: dict) -> Piece:
    if "error" in event:
        return Piece(None, error=event["error"])
    if "text_output" in event:
        return Piece(event["text_output"])
    ids, length = event["output_ids"], event["sequence_length"]
    length = length[0] if isinstance(length, list) else length
    return Piece((ids if isinstance(ids, list) else [ids])[:length])
