"""The service as a running thing: bound to an address, ended in order."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from inflight.openai import PORT
from inflight.openai.engine import Engine
from inflight.openai.model import ServedModel, describe
from inflight.openai.service import Service


@dataclass(frozen=True)
class Settings:
    """triton: HOST:PORT of the server's gRPC. names: what requests call the model; default its checkpoint folder's
    name. tokenizer, chat_template: instead of the model's own. grace_s: how long the end waits for running answers."""

    triton: str
    host: str = "127.0.0.1"
    port: int = PORT
    engine_model: str = "tensorrt_llm"
    names: Sequence[str] = ()
    tokenizer: Path | None = None
    chat_template: Path | None = None
    grace_s: float = 30.0

    @property
    def url(self) -> str:
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}/v1"


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[ServedModel]:
    """A service that takes requests. At the end it takes no more, and running answers get `grace_s` to finish.
    Raises InflightError when the server or the model's files are not there, OSError for a port that is taken."""
    _allow_many_connections()
    engine = Engine(settings.triton, settings.engine_model)
    try:
        model = await describe(engine, settings.names, settings.tokenizer, settings.chat_template)
        runner = web.AppRunner(
            Service(engine, model).application(),
            handler_cancellation=True,  # a client that leaves ends its answer
            access_log=None,
            shutdown_timeout=settings.grace_s,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
            yield model
        finally:
            await runner.cleanup()
    finally:
        await engine.close()


def _allow_many_connections() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
