"""Hands on what tensorrt_llm streams. After a few responses it comes to a standstill with the interpreter's lock, so
that the process takes no responses, until somebody opens its gate: it stands for any python model that hangs."""

import ctypes
import os
import threading
from pathlib import Path

import triton_python_backend_utils as pb_utils

OUTPUTS = ["output_ids", "sequence_length"]
RESPONSES_BEFORE_THE_GATE = 3


class TritonPythonModel:
    def initialize(self, args):
        self.gate = Path(args["model_repository"]) / "gate"

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.relay, args=(request, request.get_response_sender())).start()

    def relay(self, request, sender):
        inputs = [pb_utils.Tensor(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()]
        asked = pb_utils.InferenceRequest(model_name="tensorrt_llm", requested_output_names=OUTPUTS, inputs=inputs)
        for number, response in enumerate(asked.exec(decoupled=True), 1):
            if response.output_tensors():
                sender.send(pb_utils.InferenceResponse(response.output_tensors()))
            if number == RESPONSES_BEFORE_THE_GATE:
                self.wait_at_gate()
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def wait_at_gate(self):
        """Opening a FIFO to read waits for one who writes; functions of a PyDLL keep the interpreter's lock."""
        os.close(ctypes.PyDLL(None).open(bytes(self.gate), os.O_RDONLY))
