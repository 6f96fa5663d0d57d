"""Refuses `triton_backend` = python: the engine runs in the C++ backend only."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        raise pb_utils.TritonModelException(
            f"model {args['model_name']} has triton_backend 'python', which the engine does not offer; "
            "wanted 'inflight', or its other name 'tensorrtllm'"
        )

    def execute(self, requests):
        raise NotImplementedError
