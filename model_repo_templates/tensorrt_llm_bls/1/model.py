"""The ensemble's chain as a script: preprocessing, the engine model, postprocessing, with the ensemble's tensors."""

import json
import sys
import threading
import uuid

try:
    import numpy as np

    from inflight.serve.bls_tensors import (
        CHUNK_OUTPUTS,
        ENGINE_INPUTS,
        ENGINE_OUTPUTS,
        PREPROCESSING_INPUTS,
        PREPROCESSING_OUTPUTS,
        UNSUPPORTED,
    )
    from inflight.serve.model_support import RequestError, flag_parameter, text_parameter
except ImportError as error:
    raise ImportError(
        f"{error}: Triton's Python at {sys.prefix} needs the inflight package; start tritonserver with the virtual "
        "environment's bin folder first in PATH, or pip install inflight for that Python"
    ) from error

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class InnerError(Exception):
    """Another model's error, on its way to the client."""

    def __init__(self, error):
        super().__init__(error.message())
        self.error = error


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.accumulate = flag_parameter(config, "accumulate_tokens", default=False)
        self.engine = text_parameter(config, "tensorrt_llm_model_name") or "tensorrt_llm"
        for key in ("tensorrt_llm_draft_model_name", "multimodal_encoders_name"):
            if text_parameter(config, key) is not None:
                raise pb_utils.TritonModelException(f"parameter {key} is not supported; leave it out")
        self.threads = set()

    def execute(self, requests):
        """Decoupled: one thread a request, so that one instance serves many streams."""
        if not self.decoupled:
            return [self.single_response(request) for request in requests]
        self.threads = {thread for thread in self.threads if thread.is_alive()}
        for request in requests:
            thread = threading.Thread(target=self.stream, args=(request, request.get_response_sender()))
            self.threads.add(thread)
            thread.start()
        return None

    def finalize(self):
        for thread in self.threads:
            thread.join()

    def single_response(self, request):
        try:
            return next(self.responses(request, is_cancelled=request.is_cancelled))
        except Exception as error:
            return error_response(error)

    def stream(self, request, sender):
        try:
            for response in self.responses(request, sender.is_cancelled):
                sender.send(response)
        except Exception as error:
            sender.send(error_response(error), flags=FINAL)
        else:
            sender.send(flags=FINAL)

    def responses(self, request, is_cancelled):
        """Yields a response for each of the engine's; raises RequestError and InnerError."""
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        check_inputs(inputs)
        outputs = set(request.requested_output_names())
        tokens = self.call("preprocessing", rename(inputs, PREPROCESSING_INPUTS), list(PREPROCESSING_OUTPUTS))
        engine_inputs = {**rename(tokens, PREPROCESSING_OUTPUTS), **rename(inputs, ENGINE_INPUTS)}
        engine_outputs = [*CHUNK_OUTPUTS, *(name for name in ENGINE_OUTPUTS if name in outputs)]
        engine_outputs += [name for name in ("batch_index", "sequence_index") if name not in engine_outputs]
        texts = {}
        for chunk in self.engine_responses(engine_inputs, engine_outputs, is_cancelled):
            text = self.text(chunk, texts)
            kept = {name: array for name, array in chunk.items() if name in outputs}
            yield pb_utils.InferenceResponse(tensors({**kept, "text_output": text}))

    def engine_responses(self, inputs, outputs, is_cancelled):
        """Tensors of each response of the engine model, by name. A cancelled request is stopped there too."""
        request_id = str(uuid.uuid4())
        request = pb_utils.InferenceRequest(
            model_name=self.engine, inputs=tensors(inputs), requested_output_names=outputs, request_id=request_id
        )
        stopped = False
        for response in request.exec(decoupled=True) if self.decoupled else [request.exec()]:
            arrays = arrays_of(response)
            if "output_ids" in arrays and not stopped:
                yield arrays
            if self.decoupled and not stopped and is_cancelled():
                stopped = True
                self.stop(request_id)  # the engine then sends its last response
        if stopped:
            raise RequestError("CANCELLED", "the request was cancelled")

    def stop(self, request_id):
        inputs = {
            "input_ids": np.zeros((1, 1), np.int32),
            "input_lengths": np.ones((1, 1), np.int32),
            "request_output_len": np.ones((1, 1), np.int32),
            "stop": np.ones((1, 1), bool),
        }
        request = pb_utils.InferenceRequest(
            model_name=self.engine,
            inputs=tensors(inputs),
            requested_output_names=["output_ids", "sequence_length"],
            request_id=request_id,
        )
        for response in request.exec(decoupled=True):
            arrays_of(response)

    def text(self, chunk, texts):
        """bytes [1, beams]: the chunk's text, or with accumulate_tokens all text of its sequence so far."""
        text = self.call("postprocessing", rename(chunk, CHUNK_OUTPUTS), ["OUTPUT"])["OUTPUT"]
        if not self.accumulate:
            return text
        key = tuple(int(chunk[name].flat[0]) if name in chunk else 0 for name in ("batch_index", "sequence_index"))
        texts[key] = texts[key] + text if key in texts else text
        return texts[key]

    def call(self, model, inputs, outputs):
        """Tensors of the one response of another model, by name."""
        request = pb_utils.InferenceRequest(model_name=model, inputs=tensors(inputs), requested_output_names=outputs)
        return arrays_of(request.exec())


def check_inputs(inputs):
    for name, feature in UNSUPPORTED.items():
        if name in inputs and inputs[name].size:
            raise RequestError("UNSUPPORTED", f"input {name} is for {feature}, which are not supported")
    lengths = inputs["max_tokens"]
    if lengths.min(initial=1) < 1:
        raise RequestError("INVALID_ARG", f"max_tokens is {lengths.min()}, wanted at least 1")


def rename(arrays, names):
    """The arrays that `names` lists, under their names for the other model."""
    return {new: arrays[old] for old, new in names.items() if old in arrays}


def tensors(arrays):
    return [pb_utils.Tensor(name, array) for name, array in arrays.items()]


def arrays_of(response):
    if response.has_error():
        raise InnerError(response.error())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def error_response(error):
    if isinstance(error, InnerError):
        return pb_utils.InferenceResponse(error=error.error)
    if isinstance(error, RequestError):
        code = getattr(pb_utils.TritonError, error.code)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"tensorrt_llm_bls: {error!r}"))
