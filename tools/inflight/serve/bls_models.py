"""How a script asks the other models of the repository. Importable only in the python backend's process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import triton_python_backend_utils as pb_utils

from inflight.serve.model_support import RequestError

Arrays = Mapping[str, np.ndarray]


class InnerError(Exception):
    """Another model's error, on its way to the client."""

    def __init__(self, error: pb_utils.TritonError):
        super().__init__(error.message())
        self.error = error


def call(model: str, inputs: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors of the one response of another model, by name. Raises InnerError."""
    request = pb_utils.InferenceRequest(model_name=model, inputs=tensors(inputs), requested_output_names=list(outputs))
    return arrays_of(request.exec())


class EngineAnswer:
    """A request to the engine model and its responses."""

    def __init__(self, model: str, inputs: Arrays, outputs: Sequence[str], decoupled: bool):
        self.cancelled = False
        self._model = model
        self._decoupled = decoupled
        self._id = str(uuid.uuid4())
        self._request = self._make(inputs, outputs)
        self._left: Iterator[pb_utils.InferenceResponse] = iter(())

    def responses(self) -> Iterator[dict[str, np.ndarray]]:
        """Tensors of each response with tokens, by name. Raises InnerError."""
        self._left = iter(self._request.exec(decoupled=True) if self._decoupled else [self._request.exec()])
        for response in self._left:
            arrays = arrays_of(response)
            if "output_ids" in arrays and not self.cancelled:
                yield arrays

    def cancel(self) -> None:
        self.cancelled = True
        self.stop()

    def stop(self) -> None:
        """The engine then sends an empty last response."""
        inputs = {
            "input_ids": np.zeros((1, 1), np.int32),
            "input_lengths": np.ones((1, 1), np.int32),
            "request_output_len": np.ones((1, 1), np.int32),
            "stop": np.ones((1, 1), bool),
        }
        order = self._make(inputs, ["output_ids", "sequence_length"])
        for response in order.exec(decoupled=True) if self._decoupled else [order.exec()]:
            arrays_of(response)

    def drain(self) -> None:
        """Reads to the end: the server frees what belongs to the request then."""
        for _ in self._left:
            pass

    def _make(self, inputs: Arrays, outputs: Sequence[str]) -> pb_utils.InferenceRequest:
        return pb_utils.InferenceRequest(
            model_name=self._model,
            inputs=tensors(inputs),
            requested_output_names=list(outputs),
            request_id=self._id,
        )


def tensors(arrays: Arrays) -> list[pb_utils.Tensor]:
    return [pb_utils.Tensor(name, array) for name, array in arrays.items()]


def arrays_of(response: pb_utils.InferenceResponse) -> dict[str, np.ndarray]:
    if response.has_error():
        raise InnerError(response.error())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def error_response(error: Exception) -> pb_utils.InferenceResponse:
    if isinstance(error, InnerError):
        return pb_utils.InferenceResponse(error=error.error)
    if isinstance(error, RequestError):
        code = getattr(pb_utils.TritonError, error.code)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"tensorrt_llm_bls: {error!r}"))
