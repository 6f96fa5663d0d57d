"""Server-sent events to one client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web

# A client that takes nothing for so long is gone: its answer ends.
PATIENCE_S = 60.0
_DONE = b"data: [DONE]\n\n"
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class EventStream:
    """The answer to `request`. All methods raise ConnectionError when the client has gone or takes nothing."""

    def __init__(self, request: web.Request, patience_s: float = PATIENCE_S):
        self.response = web.StreamResponse(headers=_HEADERS)
        self._request = request
        self._patience_s = patience_s

    async def begin(self) -> None:
        await self.response.prepare(self._request)

    async def send(self, bodies: Sequence[dict[str, Any]]) -> None:
        """Waits for a slow client."""
        if bodies:
            await self._write(b"".join(b"data: %b\n\n" % encode(body) for body in bodies))

    async def end(self) -> None:
        await self._write(_DONE)
        await self.response.write_eof()

    async def _write(self, data: bytes) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        # A write that cannot wait needs no timer: the transport takes 64 KiB before it asks to wait.
        if len(data) < 2**15 and not transport.get_write_buffer_size():
            return await self.response.write(data)
        try:
            return await asyncio.wait_for(self.response.write(data), self._patience_s)
        except (asyncio.TimeoutError, TimeoutError):  # two types before Python 3.11
            transport.abort()
            raise ConnectionResetError(f"the client took nothing for {self._patience_s:.0f} s") from None
