"""A running server as the tests see it: requests as keyword arguments, answers as plain values."""

from __future__ import annotations

import json
import os
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from inflight.serve.locate import ServerError
from inflight.serve.server import TritonServer

TEXT_MODELS = ("ensemble", "tensorrt_llm_bls", "inflight_text")
PROMPT = "def read_file(path):\n    "
PATIENCE_S = 120.0  # until something that must come counts as missing: a test that passes never waits for its end
ENDLESS = 16000  # tokens of long_7m; takes a minute, so it is cancelled
STILL_SCRAPES = 15

# Types that a plain Python number or list stands for, by tensor name; all others are INT32.
_TYPES = {
    **dict.fromkeys(("random_seed", "seed", "lora_task_id", "prompt_table_extra_ids"), np.uint64),
    **dict.fromkeys(("embedding_bias", "embedding_bias_weights", "draft_acceptance_threshold"), np.float32),
}


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


@dataclass
class Response:
    """One response of a stream. `error`: its text; then nothing follows (a stream carries no error codes)."""

    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    final: bool = False
    request_id: str = ""
    error: str | None = None

    @property
    def tokens(self) -> list[int]:
        """Of the one row of output_ids, cut to its length."""
        if "output_ids" not in self.outputs:
            return []
        return self.outputs["output_ids"].reshape(-1)[: int(self.outputs["sequence_length"].flat[0])].tolist()

    @property
    def text(self) -> str:
        return b"".join(self.outputs["text_output"].reshape(-1)).decode() if "text_output" in self.outputs else ""


class Stream:
    """One gRPC stream with one request on it. Iterating gives the responses up to the final one or the error."""

    def __init__(self, url: str, model: str, inputs: dict, outputs: Iterable[str] | None = None, **options: object):
        self._responses: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._client = grpc.InferenceServerClient(url)
        self._client.start_stream(self._receive)
        self._client.async_stream_infer(
            model,
            [tensor(name, value) for name, value in inputs.items()],
            outputs=None if outputs is None else [grpc.InferRequestedOutput(name) for name in outputs],
            enable_empty_final_response=True,
            **options,
        )

    def _receive(self, result: grpc.InferResult | None, error: InferenceServerException | None) -> None:
        if error is not None:
            return self._responses.put(Response(error=error.message()))
        message = result.get_response()
        arrays = {output.name: result.as_numpy(output.name) for output in message.outputs}
        final = message.parameters["triton_final_response"].bool_param
        return self._responses.put(Response(arrays, final, message.id))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None:
            self.cancel()  # closing waits for the answer
        self.close()

    def __iter__(self) -> Iterator[Response]:
        while True:
            response = self.next()
            yield response
            if response.final or response.error:
                return

    def next(self, patience_s: float = PATIENCE_S) -> Response:
        """The next response; raises queue.Empty when none comes in time."""
        return self._responses.get(timeout=patience_s)

    def is_silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing more comes for a while."""
        try:
            self.next(seconds)
        except queue.Empty:
            return True
        return False

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)

    def close(self) -> None:
        self._client.close()


class Served:
    """A ready server and the ways to ask it."""

    def __init__(self, server: TritonServer, engine_dir: Path):
        self.server = server
        self.engine_dir = engine_dir

    def get(self, path: str) -> HttpAnswer:
        return self._http(urllib.request.Request(f"{self.server.http_url}{path}"))

    def post(self, path: str, body: object) -> HttpAnswer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._http(urllib.request.Request(f"{self.server.http_url}{path}", data))

    def load(self, model: str = "tensorrt_llm", config: dict | None = None) -> HttpAnswer:
        """Loads or reloads a model, with another configuration where one is given (see `changed`)."""
        body = {} if config is None else {"parameters": {"config": json.dumps(config)}}
        return self.post(f"/v2/repository/models/{model}/load", body)

    def unload(self, model: str = "tensorrt_llm") -> HttpAnswer:
        """Orders it: see `is_gone`."""
        return self.post(f"/v2/repository/models/{model}/unload", {})

    def is_gone(self, model: str = "tensorrt_llm") -> bool:
        """Whether the unload is complete: a model is no longer ready long before that."""
        index = self.post("/v2/repository/index", {}).json
        return {row["name"]: row.get("reason") for row in index}[model] == "unloaded"

    def config(self, model: str = "tensorrt_llm") -> dict:
        """Of a loaded model, as the server gives it."""
        return self.get(f"/v2/models/{model}/config").json

    def generate(self, model: str = "ensemble", **fields: object) -> HttpAnswer:
        return self.post(f"/v2/models/{model}/generate", {"text_input": PROMPT, "max_tokens": 8, **fields})

    def events(self, model: str = "ensemble", **fields: object) -> list[dict]:
        """The events of /generate_stream."""
        request = {"text_input": PROMPT, "max_tokens": 8, "stream": True, **fields}
        answer = self.post(f"/v2/models/{model}/generate_stream", request)
        assert answer.status == 200, answer
        return [json.loads(event.removeprefix(b"data: ")) for event in answer.body.split(b"\n\n") if event]

    def text(self, model: str = "ensemble", **fields: object) -> str:
        answer = self.generate(model, **fields)
        assert answer.status == 200, answer
        return answer.json["text_output"]

    def stream(self, model: str = "ensemble", outputs: Iterable[str] | None = None, **inputs: object) -> Stream:
        """Options of the client (request_id, timeout in us, priority, parameters) go by these names."""
        options = {name: inputs.pop(name) for name in ("request_id", "timeout", "parameters") if name in inputs}
        if model in TEXT_MODELS:
            inputs = {"text_input": PROMPT, "max_tokens": 8, "stream": True, **inputs}
        return Stream(self.server.grpc_url, model, inputs, outputs, **options)

    def ask_tokens(self, input_ids: list[int], max_tokens: int = 8, **inputs: object) -> list[Response]:
        """All responses of the engine model to one prompt; raises AssertionError on an error."""
        with self.stream_tokens(input_ids, max_tokens, **inputs) as stream:
            responses = list(stream)
        assert responses[-1].error is None, responses[-1].error
        return responses

    def stream_tokens(self, input_ids: list[int], max_tokens: int = 8, **inputs: object) -> Stream:
        prompt = {"input_ids": input_ids, "input_lengths": len(input_ids), "request_output_len": max_tokens}
        return self.stream("tensorrt_llm", **{**prompt, **inputs})

    def refusal(self, model: str = "tensorrt_llm", **inputs: object) -> str:
        """Text of the error that the request gets instead of any output."""
        with self.stream(model, **inputs) as stream:
            (response,) = stream
        assert response.error is not None, f"no error but {response}"
        return response.error

    def infer(self, model: str, **inputs: object) -> dict[str, np.ndarray]:
        """The one response of a model that is not decoupled. Raises InferenceServerException, with the status."""
        with grpc.InferenceServerClient(self.server.grpc_url) as client:
            result = client.infer(model, [tensor(name, value) for name, value in inputs.items()])
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def metrics(self) -> dict[str, str]:
        """Every sample of /metrics, by name and labels, as its text."""
        text = self._http(urllib.request.Request(self.server.metrics_url)).body.decode()
        return dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))

    def sample(self, *words: str, model: str = "tensorrt_llm") -> float:
        """The one sample of the model whose name or labels hold all of `words`."""
        wanted = (*words, f'model="{model}"')
        found = {key: value for key, value in self.metrics().items() if all(word in key for word in wanted)}
        assert len(found) == 1, f"{wanted}: {found}"
        return float(*found.values())

    def wait_until_active(self, count: int = 1) -> None:
        """Returns when the engine model shows at least `count` requests that run or wait."""
        becomes(True, lambda: self.sample('="active"') >= count)

    def cancelled_requests(self, model: str = "tensorrt_llm") -> int:
        (statistics,) = self.get(f"/v2/models/{model}/stats").json["model_stats"]
        return sum(it["cancel"]["count"] for it in statistics["response_stats"].values())

    def wait_until_idle(self, model: str = "tensorrt_llm", patience_s: float = PATIENCE_S) -> None:
        """Returns when the engine model has no request and holds no KV blocks for one."""
        end = time.monotonic() + patience_s
        while any(busy := [self.sample(f'="{it}"', model=model) for it in ("active", "used")]):
            assert time.monotonic() < end, f"active requests and used KV blocks after {patience_s} s: {busy}"
            time.sleep(0.01)

    def settle(self, model: str = "tensorrt_llm", patience_s: float = PATIENCE_S) -> None:
        """Returns when the model is idle and what it did before is shown: the server gets samples a period after the
        step, so they must be the same in many scrapes. (Time alone says nothing: the server may have stood still.)"""
        self.wait_until_idle(model, patience_s)
        end = time.monotonic() + patience_s
        shown, same = self.metrics(), 0
        while same < STILL_SCRAPES:
            assert time.monotonic() < end, f"the samples still change after {patience_s} s"
            time.sleep(0.02)
            now = self.metrics()
            shown, same = now, same + 1 if now == shown else 0

    def shows(self, expected: float, *words: str, model: str = "tensorrt_llm") -> None:
        """Asserts that the sample of these words (see `sample`) becomes `expected`."""
        becomes(expected, lambda: self.sample(*words, model=model))

    def require_healthy(self, expected_text: str) -> None:
        """Alive, ready, idle, and still answers PROMPT as before."""
        assert self.server.exit_code is None, self.server.log_tail()
        assert self.get("/v2/health/ready").status == 200
        self.wait_until_idle()
        assert self.text() == expected_text

    def process_ids(self) -> list[int]:
        """The server and the processes that it started, as far as they live."""
        found = [self.server.pid] if Path(f"/proc/{self.server.pid}").exists() else []
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(FileNotFoundError, ProcessLookupError):  # its thread has just ended
                    found += map(int, children.read_text().split())
        return found

    def processor_times(self) -> dict[int, int]:
        """Clock ticks that each process has used."""
        times = {}
        for pid in self.process_ids():
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                times[pid] = int(fields[11]) + int(fields[12])
        return times

    def memory_of_processes(self) -> dict[int, int]:
        """Resident bytes of each process."""
        page, sizes = os.sysconf("SC_PAGE_SIZE"), {}
        for pid in self.process_ids():
            with suppress(FileNotFoundError, ProcessLookupError):
                sizes[pid] = page * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return sizes

    def server_memory(self) -> int:
        return self.memory_of_processes()[self.server.pid]

    def server_address_space(self) -> int:
        """Bytes that the server has mapped, touched or not."""
        return os.sysconf("SC_PAGE_SIZE") * int(Path(f"/proc/{self.server.pid}/statm").read_text().split()[0])

    @staticmethod
    def _http(request: urllib.request.Request) -> HttpAnswer:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return HttpAnswer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            return HttpAnswer(error.code, error.read())


@contextmanager
def ready(server: TritonServer) -> Iterator[TritonServer]:
    """Starts the server, a second time if need be: where a python model's new process gets no processor for a second,
    server 2.51 takes it for dead and may then end with this exception (issue 8882 of triton-inference-server/server).
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(server)
        except ServerError as error:
            if "boost::interprocess::lock_exception" not in str(error):
                raise
            stack.enter_context(server)
        yield server


def becomes(expected: object, probe: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Asserts that the probe comes to give `expected`: for what is true a moment after an answer."""
    end = time.monotonic() + patience_s
    while (found := probe()) != expected:
        assert time.monotonic() < end, f"{found} after {patience_s} s, wanted {expected}"
        time.sleep(0.01)


def changed(config: dict, **parameters: str) -> dict:
    """A model's configuration with other parameters."""
    values = {name: {"string_value": value} for name, value in parameters.items()}
    return {**config, "parameters": {**config["parameters"], **values}}


def tensor(name: str, value: object) -> grpc.InferInput:
    """An input of one row: a number or text becomes [1, 1], a list [1, n]; an array is taken as it is."""
    array = value if isinstance(value, np.ndarray) else _row(name, value)
    made = grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def _row(name: str, value: object) -> np.ndarray:
    values = value if isinstance(value, list) else [value]
    first = values[0] if values else 0
    if isinstance(first, str | bytes):
        return np.array([[it.encode() if isinstance(it, str) else it for it in values]], object)
    dtype = bool if isinstance(first, bool) else np.float32 if isinstance(first, float) else _TYPES.get(name, np.int32)
    return np.array([values], dtype)
