"""What python models around the executor share. Importable only in the python backend's process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import triton_python_backend_utils as pb_utils

from inflight.executor import Executor, ExecutorError, Handle, Request, Result
from inflight.serve.cancellation_watch import CancellationWatch
from inflight.serve.live_requests import LiveRequest, LiveRequests
from inflight.serve.model_support import RequestError

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
# Code of the executor -> name of a TritonError code, where they differ.
_CODES = {"invalid_argument": "INVALID_ARG"}

Arrays = dict[str, np.ndarray]


@dataclass
class Call:
    """One request of a client."""

    id_: str
    inputs: Arrays
    outputs: set[str]  # the names of those requested
    timeout_s: float
    parameters: str  # JSON
    sender: pb_utils.InferenceResponseSender
    live: LiveRequest


class ExecutorModel:
    """One instance serves many requests: each has a thread."""

    def start(self, executor: Executor, cancellation_period_s: float) -> None:
        self.executor = executor
        self.watch = CancellationWatch(cancellation_period_s)
        self.live = LiveRequests()
        self.threads: set[threading.Thread] = set()

    def responses(self, call: Call) -> Iterator[tuple[Arrays, bool]]:
        """Outputs of each response to the call, and whether it is the last. Raises RequestError and ExecutorError."""
        raise NotImplementedError

    def stopped(self, call_id: str) -> pb_utils.InferenceResponse:
        """What a stop order gets, and last of all the requests that it ended."""
        raise NotImplementedError

    def submit(self, call: Call, request: Request) -> Handle:
        handle = self.executor.submit(request)
        call.live.attach(handle)
        return handle

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        self.threads = {thread for thread in self.threads if thread.is_alive()}
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._begin(request, sender)
            except Exception as error:
                sender.send(error_response(error), flags=FINAL)

    def finalize(self) -> None:
        for thread in self.threads:
            thread.join()
        self.watch.close()
        self.executor.close()

    def _begin(self, request: pb_utils.InferenceRequest, sender: pb_utils.InferenceResponseSender) -> None:
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        id_ = request.request_id()
        if "stop" in inputs and inputs["stop"].any():
            if not id_:
                raise RequestError("INVALID_ARG", "Trying to stop a request but request ID is not provided")
            self.live.stop(id_)
            sender.send(self.stopped(id_), flags=FINAL)
            return
        outputs = set(request.requested_output_names())
        live = self.live.open(id_)
        call = Call(id_, inputs, outputs, request.timeout() / 1e6, request.parameters(), sender, live)
        try:
            thread = threading.Thread(target=self._answer, args=(call,))
            thread.start()
        except RuntimeError as error:  # the machine has no thread left
            self.live.close(id_, live)
            raise RequestError("UNAVAILABLE", f"no thread for the request: {error}") from error
        self.threads.add(thread)

    def _answer(self, call: Call) -> None:
        """The final flag goes with the last response: many clients never see one that comes alone."""
        try:
            last = self._last_response(call)
        except Exception as error:
            pb_utils.Logger.log_verbose(f"request '{call.id_}' ends: {error}")
            last = self.stopped(call.id_) if call.live.stopped else error_response(error)
        self.live.close(call.id_, call.live)
        call.sender.send(last, flags=FINAL)

    def _last_response(self, call: Call) -> pb_utils.InferenceResponse:
        """Sends the others."""
        with (
            self.watch.watching(call.sender.is_cancelled, call.live.cancel),
            closing(self.responses(call)) as responses,
        ):
            for outputs, is_last in responses:
                tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
                response = pb_utils.InferenceResponse(tensors)
                if is_last:
                    return response
                call.sender.send(response)
        raise RequestError("INTERNAL", "the executor ended before the answer")


def merged(handles: Sequence[Handle]) -> Iterator[tuple[int, Result]]:
    """Results of all handles as they come, each with its handle's place. Raises the first ExecutorError; however it
    ends, nothing is left at the executor."""
    try:
        yield from ((0, result) for result in handles[0]) if len(handles) == 1 else _as_they_come(handles)
    finally:
        for handle in handles:
            handle.cancel()


def _as_they_come(handles: Sequence[Handle]) -> Iterator[tuple[int, Result]]:
    arrived: queue.SimpleQueue[tuple[int, Result | Exception | None]] = queue.SimpleQueue()
    for place, handle in enumerate(handles):
        threading.Thread(target=_pump, args=(place, handle, arrived)).start()
    running = len(handles)
    while running:
        place, found = arrived.get()
        if isinstance(found, Exception):
            raise found
        if found is None:
            running -= 1
        else:
            yield place, found


def _pump(place: int, handle: Handle, arrived: queue.SimpleQueue[tuple[int, Result | Exception | None]]) -> None:
    """Ends with None."""
    try:
        for result in handle:
            arrived.put((place, result))
    except Exception as error:
        arrived.put((place, error))
    arrived.put((place, None))


def error_response(error: Exception) -> pb_utils.InferenceResponse:
    code, text = "INTERNAL", f"{type(error).__name__}: {error}"
    if isinstance(error, RequestError):
        code, text = error.code, str(error)
    elif isinstance(error, ExecutorError):
        code, text = _CODES.get(error.code, error.code.upper()), str(error)
    elif isinstance(error, UnicodeDecodeError):  # all texts there are the client's
        code, text = "INVALID_ARG", f"the request holds a text that is not UTF-8: {error.reason} at byte {error.start}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, getattr(pb_utils.TritonError, code)))
