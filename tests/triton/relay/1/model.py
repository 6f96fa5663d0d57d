"""Hands on what tensorrt_llm streams: it stands for any python model that asks this engine."""

import threading

import triton_python_backend_utils as pb_utils

OUTPUTS = ["output_ids", "sequence_length"]


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=relay, args=(request, request.get_response_sender())).start()


def relay(request, sender):
    inputs = [pb_utils.Tensor(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()]
    asked = pb_utils.InferenceRequest(model_name="tensorrt_llm", requested_output_names=OUTPUTS, inputs=inputs)
    for response in asked.exec(decoupled=True):
        if response.output_tensors():
            sender.send(pb_utils.InferenceResponse(response.output_tensors()))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
