"""One gRPC stream with one request on it, which is never cancelled.

Server 2.51 loses the state of a stream that is cancelled while it completes, and its model can then never be unloaded.
Therefore a stop order behind the request, on the same stream, ends it early, and the stream is read to its end. A task
of its own reads: gRPC cancels a stream when the task that waits for its next message is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

import grpc
from tritonclient.grpc import service_pb2

_AHEAD = 64  # messages that wait for a slow reader; beyond, the server waits
_END_PATIENCE_S = 10.0


class RequestStream:
    """`request` wants an empty final response; `stop` is its stop order."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall,
        request: service_pb2.ModelInferRequest,
        stop: service_pb2.ModelInferRequest,
    ):
        self._call = call
        self._request = request
        self._stop = stop
        self._queue: asyncio.Queue[service_pb2.ModelStreamInferResponse | grpc.aio.AioRpcError]
        self._queue = asyncio.Queue(_AHEAD)
        self._is_written = asyncio.Event()
        self._is_left = False
        self._is_final = False
        self._reading = asyncio.create_task(self._read())

    async def messages(self) -> AsyncGenerator[service_pb2.ModelStreamInferResponse, None]:
        """Up to the final one. Raises AioRpcError."""
        while True:
            found = await self._queue.get()
            if isinstance(found, grpc.aio.AioRpcError):
                raise found
            yield found
            if is_final(found):
                return

    async def end(self) -> None:
        """Returns when the server has nothing more to do with it. For a task of its own: it must not be cancelled."""
        self._is_left = True
        while not self._queue.empty():  # so that the reader goes on
            self._queue.get_nowait()
        stopping = asyncio.create_task(self._order_to_stop())
        _, late = await asyncio.wait({self._reading, stopping}, timeout=_END_PATIENCE_S)
        for task in late:
            task.cancel()

    async def _order_to_stop(self) -> None:
        await self._is_written.wait()
        if not self._is_final:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the stream has ended meanwhile
                await self._call.write(self._stop)
                await self._call.done_writing()

    async def _read(self) -> None:
        try:
            await self._call.write(self._request)
            self._is_written.set()
            async for message in self._call:
                await self._pass_on(message)
                if is_final(message) and not self._is_left:
                    self._is_final = True
                    await self._call.done_writing()
        except grpc.aio.AioRpcError as error:
            self._is_final = True
            await self._pass_on(error)
        finally:
            self._is_written.set()

    async def _pass_on(self, found: service_pb2.ModelStreamInferResponse | grpc.aio.AioRpcError) -> None:
        if not self._is_left:
            await self._queue.put(found)


def is_final(message: service_pb2.ModelStreamInferResponse) -> bool:
    """Whether it is the request's last one."""
    return bool(message.error_message) or message.infer_response.parameters["triton_final_response"].bool_param
