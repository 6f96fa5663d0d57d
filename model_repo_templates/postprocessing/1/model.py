"""Token ids of responses to text. Stateless: what tells a chunk's text comes with the chunk.

B is the batch dimension of one request, beams the rows of tokens in it.
"""

import json
import sys

try:
    import numpy as np

    from inflight.detokenizer import chunk_text
    from inflight.errors import InflightError
    from inflight.serve.model_support import flag_parameter, required_parameter
    from inflight.tokenizer import Tokenizer
except ImportError as error:
    raise ImportError(
        f"{error}: Triton's Python at {sys.prefix} needs the inflight package; start tritonserver with the virtual "
        "environment's bin folder first in PATH, or pip install inflight for that Python"
    ) from error

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = required_parameter(config, "tokenizer_dir")
        self.skip_special_tokens = flag_parameter(config, "skip_special_tokens", default=True)
        try:
            self.tokenizer = Tokenizer.from_folder(folder)
        except InflightError as error:
            raise pb_utils.TritonModelException(f"tokenizer_dir '{folder}': {error}") from error

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            output = pb_utils.Tensor("OUTPUT", self.output(inputs))
        except Exception as error:  # one bad request must not fail the others of its batch
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"postprocessing: {error!r}"))
        return pb_utils.InferenceResponse([output])

    def output(self, inputs):
        """bytes [B * beams]: clients decode element 0, without a batch dimension."""
        tokens = inputs["TOKENS_BATCH"]  # [B, beams, longest]
        lengths = inputs["SEQUENCE_LENGTH"]  # [B, beams]
        prefixes = inputs.get("PREFIX_IDS")  # [B, beams, p]
        ends = inputs.get("SEQUENCE_FINAL", np.zeros((len(tokens), 1), bool))
        output = np.empty(tokens.shape[:2], object)
        for row, beam in np.ndindex(*output.shape):
            chunk = tokens[row, beam, : lengths[row, beam]].tolist()
            prefix = None if prefixes is None else prefixes[row, beam].tolist()
            output[row, beam] = self.text(prefix, chunk, bool(ends[row, 0])).encode()
        return output.reshape(-1)

    def text(self, prefix, chunk, end):
        if prefix is None:
            return self.tokenizer.decode(chunk, self.skip_special_tokens)
        return chunk_text(self.tokenizer, prefix, chunk, end, self.skip_special_tokens)
