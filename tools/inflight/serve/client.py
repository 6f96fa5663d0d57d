"""A streaming client of a text model, over gRPC, that measures what the user sees."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import tritonclient.grpc as grpc

from inflight.serve.locate import ServerError
from inflight.serve.repository import TEXT_MODEL

_DTYPES = {"BYTES": object, "BOOL": bool, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32}
_SAMPLING = {
    "top_k": "INT32",
    "top_p": "FP32",
    "temperature": "FP32",
    "repetition_penalty": "FP32",
    "seed": "UINT64",
}


@dataclass
class StreamTimes:
    """When the pieces of one answer arrived, in seconds of the client's clock."""

    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def total_s(self) -> float:
        return self.arrivals[-1] - self.sent

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens, sorted."""
        return sorted(b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False))

    def gap_s(self, share: float) -> float:
        """The gap that `share` of all gaps do not exceed; 0 without gaps."""
        gaps = self.gaps_s
        return gaps[min(len(gaps) - 1, int(share * len(gaps)))] if gaps else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Over the whole answer, the wait for the first token included."""
        return len(self.arrivals) / self.total_s


class Stream:
    """One request; iterating it sends it and yields the pieces of the answer. `sampling`: top_k, top_p, temperature,
    repetition_penalty, seed (None: not sent). Iterating raises ServerError with the server's text."""

    def __init__(
        self,
        url: str,
        prompt: str,
        max_tokens: int,
        model: str = TEXT_MODEL,
        timeout_s: float = 120.0,
        **sampling: float | None,
    ):
        self.times = StreamTimes()
        self._url = url
        self._model = model
        self._timeout_s = timeout_s
        self._inputs = [
            _input("text_input", prompt.encode(), "BYTES"),
            _input("max_tokens", max_tokens, "INT32"),
            _input("stream", True, "BOOL"),
            *(_input(name, value, _SAMPLING[name]) for name, value in sampling.items() if value is not None),
        ]

    def __iter__(self) -> Iterator[str]:
        answers: queue.SimpleQueue = queue.SimpleQueue()
        with grpc.InferenceServerClient(self._url) as client:
            client.start_stream(callback=lambda result, error: answers.put((time.perf_counter(), result, error)))
            self.times.sent = time.perf_counter()
            client.async_stream_infer(self._model, self._inputs, enable_empty_final_response=True)
            final = False
            while not final:
                arrived, result, error = answers.get(timeout=self._timeout_s)
                if error is not None:
                    raise ServerError(f"model {self._model} at {self._url}: {error.message()}")
                text = result.as_numpy("text_output")
                if text is not None:
                    self.times.arrivals.append(arrived)
                    yield b"".join(text.flatten()).decode()
                final = result.get_response().parameters["triton_final_response"].bool_param


def _input(name: str, value: object, kind: str) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [1, 1], kind)
    tensor.set_data_from_numpy(np.array([[value]], _DTYPES[kind]))
    return tensor
