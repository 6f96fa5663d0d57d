"""inflight openai --url HOST:PORT: OpenAI's HTTP interface in front of a running Triton server."""

import argparse
import asyncio
import logging
import signal
from pathlib import Path

from rich.console import Console

from inflight.openai import PORT
from inflight.openai.run import Settings, running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC, HOST:PORT (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s; all: 0.0.0.0)")
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    parser.add_argument("--model", default="tensorrt_llm", help="the server's engine model (default: %(default)s)")
    parser.add_argument("--name", action="append", default=[], help="what requests call it (default: its checkpoint's)")
    parser.add_argument("--tokenizer", type=Path, help="checkpoint or engine folder (default: the server's)")
    parser.add_argument("--chat-template", type=Path, help="Jinja file (default: the tokenizer's)")
    parser.add_argument("--verbose", action="store_true", help="log a line a request")


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("inflight.openai").setLevel(logging.DEBUG if args.verbose else logging.WARNING)
    settings = Settings(
        args.url, args.host, args.port, args.model, args.name, args.tokenizer, chat_template=args.chat_template
    )
    asyncio.run(_serve(settings))
    return 0


async def _serve(settings: Settings) -> None:
    """Until SIGINT or SIGTERM."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with running(settings) as model:
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"OpenAI {settings.url}   model {model.names[0]}", markup=False)
        await stopping.wait()
