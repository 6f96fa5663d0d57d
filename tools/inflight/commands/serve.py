"""inflight serve MODEL: a Triton server of one engine, in the foreground."""

import argparse
import asyncio
import signal
from pathlib import Path

from rich.console import Console

from inflight.openai import PORT
from inflight.serve import launch
from inflight.serve.locate import ServerError
from inflight.serve.server import Ports, TritonServer

USAGE = """\
[bold]curl -s {url}/v2/models/inflight_text/generate -d '{{"text_input": "def add(a, b):", "max_tokens": 32}}'[/]
[bold]curl -sN {url}/v2/models/inflight_text/generate_stream -d \
'{{"text_input": "def add(a, b):", "max_tokens": 32, "stream": true}}'[/]"""
LLMAPI_USAGE = """\
[bold]curl -sN {url}/v2/models/tensorrt_llm/generate_stream -d \
'{{"text_input": "def add(a, b):", "sampling_param_max_tokens": 32, "streaming": true}}'[/]"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    ports = Ports()
    parser.add_argument("model", type=Path, help="engine folder or Hugging Face checkpoint folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s; all: 0.0.0.0)")
    for kind in ("http", "grpc", "metrics"):
        parser.add_argument(f"--{kind}-port", type=int, default=getattr(ports, kind), help="default: %(default)s")
    parser.add_argument("--openai", action="store_true", help="OpenAI's interface beside it, on the same address")
    parser.add_argument("--openai-port", type=int, default=PORT, help="default: %(default)s")
    parser.add_argument("--chat-template", type=Path, help="Jinja file (default: the model's)")
    parser.add_argument("--llmapi", action="store_true", help="the one model of the LLM API instead of the six models")
    launch.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    console = Console(highlight=False, soft_wrap=True)
    ports = Ports(args.http_port, args.grpc_port, args.metrics_port)
    stopping = StopSignals()
    try:
        fill = launch.fill_llmapi if args.llmapi else launch.fill_models
        with launch.running_server(args, args.model, ports, args.host, console, fill) as server:
            show(server, args.model, LLMAPI_USAGE if args.llmapi else USAGE, console)
            stopping.waiting = True
            asyncio.run(serve_openai(args, server, stopping, console) if args.openai else wait(server, stopping))
    except KeyboardInterrupt:  # raised by StopSignals while the server starts
        return 130
    return 0


class StopSignals:
    """SIGINT and SIGTERM end the wait; a first one during start-up interrupts it."""

    def __init__(self) -> None:
        self.waiting = False
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        self.received = True
        if not self.waiting:
            raise KeyboardInterrupt


def show(server: TritonServer, model: Path, usage: str, console: Console) -> None:
    console.print(f"Serving {model} (process {server.pid}); Ctrl-C stops it.", markup=False)
    console.print(f"HTTP {server.http_url}   gRPC {server.grpc_url}   metrics {server.metrics_url}", markup=False)
    console.print(f"log {server.log}", markup=False)
    console.print(usage.format(url=server.http_url))


async def serve_openai(args: argparse.Namespace, server: TritonServer, stopping: StopSignals, console: Console) -> None:
    from inflight.openai.run import Settings, running  # its libraries are for those who want it

    settings = Settings(server.grpc_url, args.host, args.openai_port, chat_template=args.chat_template)
    async with running(settings) as model:
        console.print(f"OpenAI {settings.url}   model {model.names[0]}", markup=False)
        await wait(server, stopping)


async def wait(server: TritonServer, stopping: StopSignals) -> None:
    """Until a signal comes. Raises ServerError when the server dies."""
    while not stopping.received:
        if server.exit_code is not None:
            raise ServerError(f"the server ended with code {server.exit_code}\n{server.log_tail()}")
        await asyncio.sleep(0.2)
