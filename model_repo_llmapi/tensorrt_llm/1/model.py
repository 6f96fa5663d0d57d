"""The whole engine in one python model, with the tensors of the LLM API's model; model.yaml says what it serves."""

import json
import os
import sys
from pathlib import Path

try:
    from inflight.errors import InflightError
    from inflight.executor import Executor
    from inflight.serve.executor_model import ExecutorModel, error_response
    from inflight.serve.llmapi_answer import Answers
    from inflight.serve.llmapi_request import read_order
    from inflight.serve.llmapi_settings import check_model_config, read_settings
    from inflight.serve.model_support import RequestError
    from inflight.tokenizer import Tokenizer
except ImportError as error:
    raise ImportError(
        f"{error}: Triton's Python at {sys.prefix} needs the inflight package; start tritonserver with the virtual "
        "environment's bin folder first in PATH, or pip install inflight for that Python"
    ) from error

import triton_python_backend_utils as pb_utils


class TritonPythonModel(ExecutorModel):
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
            executor = Executor(self.settings.model, **self.settings.executor)
        except InflightError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        for name in self.settings.ignored:
            pb_utils.Logger.log_warn(f"{args['model_name']}: setting {name} has no effect")
        self.tokens_per_block = executor.stats()["kv_tokens_per_block"]
        self.start(executor, self.settings.cancellation_period_s)

    def responses(self, call):
        order = read_order(call.inputs, self.tokenizer, self.settings.decoupled, call.timeout_s)
        answers = Answers(self.tokenizer, order, self.tokens_per_block)
        for outputs in answers.responses(self.submit(call, order.request)):
            yield outputs, answers.ended

    def stopped(self, call_id):
        return error_response(RequestError("CANCELLED", f"the requests with id '{call_id}' are cancelled"))


def settings():
    return read_settings(Path(__file__).parent, os.environ)
