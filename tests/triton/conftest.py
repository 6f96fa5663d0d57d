"""Servers that the tests of this folder share. Each serves python-7m on the CPU, with all six models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inflight import plan
from inflight.executor import Executor, Request
from inflight.serve.repository import fill_repository
from inflight.serve.server import TritonServer
from inflight.tokenizer import Tokenizer
from served import ENDLESS, PROMPT, Served, ready


@pytest.fixture(scope="session")
def engine_dir(python_7m: Path) -> Path:
    return plan.ensure(python_7m)


@pytest.fixture(scope="session")
def long_engine_dir(long_7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plan.build(long_7m, tmp_path_factory.mktemp("long") / "engine")


@pytest.fixture(scope="session")
def start(engine_dir: Path, python_7m: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """start(arguments=(), edit=None, engine=engine_dir, **template_variables): a context manager of a ready server.
    `edit` may change the filled repository before the start."""
    cache = tmp_path_factory.mktemp("backends")

    @contextmanager
    def started(arguments=(), edit=None, engine: Path = engine_dir, **variables) -> Iterator[Served]:
        folder = tmp_path_factory.mktemp("server")
        repository = fill_repository(folder / "models", engine, python_7m, **variables)
        if edit is not None:
            edit(repository)
        server = TritonServer(repository, arguments=arguments, cache=cache, log=folder / "server.log")
        with ready(server):
            yield Served(server, engine)

    return started


@pytest.fixture(scope="session")
def shared_server(start) -> Iterator[Served]:
    with start(stats_check_period_ms=20) as served:
        yield served


@pytest.fixture
def served(shared_server: Served, greedy_text: Callable) -> Iterator[Served]:
    """The decoupled server. After every test it must be alive, idle again, and answer as before."""
    yield shared_server
    shared_server.require_healthy(greedy_text(PROMPT))


@pytest.fixture(scope="session")
def endless_server(start, long_engine_dir: Path) -> Iterator[Served]:
    """With KV blocks for sixteen endless requests at once."""
    with start(engine=long_engine_dir, kv_cache_cpu_memory_bytes=4 << 30, stats_check_period_ms=20) as served:
        yield served


@pytest.fixture
def endless(endless_server: Served, greedy_text: Callable) -> Iterator[Served]:
    """The server for requests for ENDLESS tokens that end before: the engine must not compute on."""
    endless_server.settle()
    before = endless_server.sample("iteration_counter")
    yield endless_server
    endless_server.require_healthy(greedy_text(PROMPT))
    endless_server.settle()
    assert endless_server.sample("iteration_counter") - before < ENDLESS


@pytest.fixture(scope="session")
def shared_single_server(start) -> Iterator[Served]:
    with start(decoupled_mode=False, stats_check_period_ms=20) as served:
        yield served


@pytest.fixture
def single(shared_single_server: Served, greedy_text: Callable) -> Iterator[Served]:
    """The server whose models give one response a request; there gRPC tells the codes of errors."""
    yield shared_single_server
    shared_single_server.require_healthy(greedy_text(PROMPT))


@pytest.fixture(scope="session")
def executor(engine_dir: Path) -> Iterator[Executor]:
    """What the server must agree with: the same engine without the server."""
    with Executor(engine_dir, num_threads=1) as shared:
        yield shared


@pytest.fixture(scope="session")
def tokenizer(python_7m: Path) -> Tokenizer:
    return Tokenizer.from_folder(python_7m)


@pytest.fixture(scope="session")
def greedy(executor: Executor) -> Callable[..., list[int]]:
    """greedy(input_ids, max_tokens=8, **fields): the answer's tokens, by the executor."""
    return lambda input_ids, max_tokens=8, **fields: executor.generate(Request(input_ids, max_tokens, **fields))


@pytest.fixture(scope="session")
def greedy_text(greedy: Callable, tokenizer: Tokenizer) -> Callable[..., str]:
    """greedy_text(prompt, max_tokens=8, **fields): the same for text, ending at the tokenizer's end token."""

    def answer(prompt: str, max_tokens: int = 8, **fields: object) -> str:
        tokens = greedy(tokenizer.encode(prompt, True), max_tokens, end_id=tokenizer.end_id, **fields)
        return tokenizer.decode(tokens, True)

    return answer
