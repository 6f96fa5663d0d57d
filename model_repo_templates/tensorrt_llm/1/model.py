"""The engine model where `triton_backend` is python: the executor in the python backend's process. The backend itself
(`triton_backend` inflight) is faster, and has metrics and the inputs that are missing here."""

import json
import sys

try:
    import numpy as np

    from inflight.errors import InflightError
    from inflight.executor import Executor
    from inflight.serve.engine_answer import engine_outputs
    from inflight.serve.engine_request import Defaults, read_rows
    from inflight.serve.engine_settings import read_parameters
    from inflight.serve.executor_model import ExecutorModel, merged
    from inflight.serve.model_support import RequestError
except ImportError as error:
    raise ImportError(
        f"{error}: Triton's Python at {sys.prefix} needs the inflight package; start tritonserver with the virtual "
        "environment's bin folder first in PATH, or pip install inflight for that Python"
    ) from error

import triton_python_backend_utils as pb_utils


class TritonPythonModel(ExecutorModel):
    def initialize(self, args):
        config = json.loads(args["model_config"])
        try:
            settings = read_parameters(config)
            executor = Executor(settings.engine_dir, **settings.executor)
        except InflightError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        for key in settings.ignored:
            pb_utils.Logger.log_warn(f"{args['model_name']}: parameter {key} is unknown and ignored")
        decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.defaults = Defaults(decoupled, settings.exclude_input, settings.random_seed)
        self.is_batched = config["max_batch_size"] > 0
        logits = pb_utils.get_output_config_by_name(config, "context_logits")
        self.logits_dtype = np.dtype(pb_utils.triton_string_to_numpy(logits["data_type"]))
        self.start(executor, settings.cancellation_period_s)

    def responses(self, call):
        check_request_type(json.loads(call.parameters or "{}"))
        inputs = call.inputs if self.is_batched else {name: it[None] for name, it in call.inputs.items()}
        rows = read_rows(inputs, call.outputs, self.defaults, call.timeout_s)
        handles = [self.submit(call, row.request) for row in rows]
        left = sum(row.request.num_return_sequences for row in rows)
        for index, result in merged(handles):
            left -= result.final
            outputs = engine_outputs(rows[index], len(rows), result, self.logits_dtype)
            yield outputs if self.is_batched else {name: it[0] for name, it in outputs.items()}, left == 0

    def stopped(self, call_id):
        return pb_utils.InferenceResponse([])


def check_request_type(parameters):
    kind = parameters.get("request_type")
    if kind in ("context_only", "generation_only"):
        raise RequestError(
            "UNSUPPORTED", f"request parameter request_type is {kind}; this version supports context_and_generation"
        )
