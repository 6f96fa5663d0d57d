"""What `inflight serve` and `inflight demo` share: arguments, plan, repository, progress."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from inflight import plan
from inflight.errors import InflightError
from inflight.serve.llmapi_repository import fill_llmapi_repository
from inflight.serve.repository import fill_repository
from inflight.serve.server import Ports, TritonServer
from inflight.tokenizer import tokenizer_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tritonserver", type=Path, help="server binary (default: the one of nvidia-pytriton)")
    parser.add_argument("--backend-library", type=Path, help="libtriton_inflight.so (default: the installed one)")
    parser.add_argument(
        "--draft",
        type=Path,
        metavar="MODEL",
        help="a small model with the same tokenizer: inflight_text and tensorrt_llm_bls then take num_draft_tokens",
    )
    parser.add_argument("--log-file", type=Path, help="the server's log (default: a temporary file)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a template variable of the model repository, such as max_batch_size=64 or tensor_parallel_size=2",
    )


def fill_models(args: argparse.Namespace, folder: Path, engine_dir: Path) -> Path:
    """The six models, and the draft model where one is named."""
    draft = None if args.draft is None else plan.ensure(args.draft)
    variables = dict(_name_and_value(text) for text in args.set)
    return fill_repository(folder, engine_dir, tokenizer_folder(engine_dir), draft, **variables)


def fill_llmapi(args: argparse.Namespace, folder: Path, engine_dir: Path) -> Path:
    """The llmapi model. Raises InflightError for options of the other models."""
    given = [f"--{name}" for name in ("draft", "set", "openai") if getattr(args, name)]
    if given:
        raise InflightError(f"{' and '.join(given)} with --llmapi: the model of the LLM API has nothing for that")
    return fill_llmapi_repository(folder, engine_dir)


@contextmanager
def running_server(
    args: argparse.Namespace,
    model: Path,
    ports: Ports,
    host: str,
    console: Console,
    fill: Callable[[argparse.Namespace, Path, Path], Path] = fill_models,
) -> Iterator[TritonServer]:
    """A ready server of `model` (engine folder or checkpoint), stopped at the end. `fill` (args, folder, engine folder)
    writes its repository. Raises InflightError."""
    with tempfile.TemporaryDirectory(prefix="inflight-serve-") as folder:
        with console.status("Writing the plan ..."):
            repository = fill(args, Path(folder) / "models", plan.ensure(model))
        server = TritonServer(
            repository, args.tritonserver, args.backend_library, host=host, ports=ports, log=args.log_file
        )
        try:
            with console.status("Starting the server ...") as status:
                server.on_wait = lambda seconds: status.update(f"Starting the server ... {seconds:.0f} s")
                server.start()
                server.wait_until_ready()
            yield server
        finally:
            with console.status("Stopping the server ..."):
                server.stop()


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--set {text}: wanted NAME=VALUE")
    return name, value
