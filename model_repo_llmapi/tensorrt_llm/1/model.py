"""The whole engine in one python model, with the tensors of the LLM API's model; model.yaml says what it serves."""

import json
import os
import sys
import threading
from contextlib import closing
from pathlib import Path

try:
    from inflight.errors import InflightError
    from inflight.executor import Executor, ExecutorError
    from inflight.serve.bls_watch import CancellationWatch
    from inflight.serve.live_requests import LiveRequests
    from inflight.serve.llmapi_answer import Answers
    from inflight.serve.llmapi_request import flag, read_order
    from inflight.serve.llmapi_settings import check_model_config, read_settings
    from inflight.serve.model_support import RequestError
    from inflight.tokenizer import Tokenizer
except ImportError as error:
    raise ImportError(
        f"{error}: Triton's Python at {sys.prefix} needs the inflight package; start tritonserver with the virtual "
        "environment's bin folder first in PATH, or pip install inflight for that Python"
    ) from error

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
# Code of the executor -> name of a TritonError code, where they differ.
CODES = {"INVALID_ARGUMENT": "INVALID_ARG"}


class TritonPythonModel:
    @classmethod
    def auto_complete_config(cls, config):
        config.set_max_batch_size(0)
        config.set_model_transaction_policy({"decoupled": settings().decoupled})
        return config

    def initialize(self, args):
        try:
            self.settings = settings()
            check_model_config(json.loads(args["model_config"]), self.settings)
            self.tokenizer = Tokenizer.from_folder(self.settings.tokenizer)
            self.executor = Executor(self.settings.model, **self.settings.executor)
        except InflightError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        for name in self.settings.ignored:
            pb_utils.Logger.log_warn(f"{args['model_name']}: setting {name} has no effect")
        self.tokens_per_block = self.executor.stats()["kv_tokens_per_block"]
        self.watch = CancellationWatch(self.settings.cancellation_period_s)
        self.live = LiveRequests()
        self.threads = set()

    def execute(self, requests):
        """One thread a request, so that one instance serves many."""
        self.threads = {thread for thread in self.threads if thread.is_alive()}
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.begin(request, sender)
            except Exception as error:
                sender.send(error_response(error), flags=FINAL)

    def finalize(self):
        for thread in self.threads:
            thread.join()
        self.watch.close()
        self.executor.close()

    def begin(self, request, sender):
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        id_ = request.request_id()
        if flag(inputs, "stop"):
            if not id_:
                raise RequestError("INVALID_ARG", "Trying to stop a request but request ID is not provided")
            self.live.cancel(id_)
            raise RequestError("CANCELLED", f"the requests with id '{id_}' are cancelled")
        live = self.live.open(id_)
        try:
            thread = threading.Thread(target=self.answer, args=(inputs, request.timeout(), sender, id_, live))
            thread.start()
        except RuntimeError as error:  # the machine has no thread left
            self.live.close(id_, live)
            raise RequestError("UNAVAILABLE", f"no thread for the request: {error}") from error
        self.threads.add(thread)

    def answer(self, inputs, timeout_us, sender, id_, live):
        """The final flag goes with the last response: many clients never see one that comes alone."""
        try:
            final = self.last_response(inputs, timeout_us / 1e6, sender, live)
        except Exception as error:
            pb_utils.Logger.log_verbose(f"request '{id_}' ends: {error}")
            final = error_response(error)
        self.live.close(id_, live)
        sender.send(final, flags=FINAL)

    def last_response(self, inputs, timeout_s, sender, live):
        """Sends the others. Raises RequestError and ExecutorError."""
        order = read_order(inputs, self.tokenizer, self.settings.decoupled, timeout_s)
        answers = Answers(self.tokenizer, order, self.tokens_per_block)
        handle = self.executor.submit(order.request)
        live.attach(handle)
        with self.watch.watching(sender.is_cancelled, handle.cancel), closing(answers.responses(handle)) as responses:
            for outputs in responses:
                response = pb_utils.InferenceResponse([pb_utils.Tensor(*it) for it in outputs.items()])
                if answers.ended:
                    return response
                sender.send(response)
        raise RequestError("INTERNAL", "the executor ended before the answer")


def settings():
    return read_settings(Path(__file__).parent, os.environ)


def error_response(error):
    code = "INTERNAL"
    if isinstance(error, RequestError):
        code = error.code
    elif isinstance(error, ExecutorError):
        code = CODES.get(error.code.upper(), error.code.upper())
    text = str(error) if isinstance(error, RequestError | ExecutorError) else f"llmapi: {error!r}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, getattr(pb_utils.TritonError, code)))
