"""Text requests to the engine model's tensors. B is the batch dimension of one request."""

import json
import sys

try:
    import numpy as np

    from inflight.errors import InflightError
    from inflight.serve.model_support import RequestError, flag_parameter, required_parameter, text_parameter, texts
    from inflight.serve.request_tensors import embedding_bias, extra_ids, padded, word_lists
    from inflight.tokenizer import Tokenizer, vocabulary_size
except ImportError as error:
    raise ImportError(
        f"{error}: Triton's Python at {sys.prefix} needs the inflight package; start tritonserver with the virtual "
        "environment's bin folder first in PATH, or pip install inflight for that Python"
    ) from error

import triton_python_backend_utils as pb_utils

# Inputs of features that are not there, and what they belong to.
UNSUPPORTED = {
    "IMAGE_BYTES": "multimodal networks",
    "IMAGE_URL": "multimodal networks",
    "IMAGES": "multimodal networks",
    "VIDEO_BYTES": "multimodal networks",
    "DECODER_QUERY": "encoder-decoder networks",
}


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = required_parameter(config, "tokenizer_dir")
        if text_parameter(config, "add_special_tokens") is None:
            pb_utils.Logger.log_warn("preprocessing: add_special_tokens is not set, taking true")
        self.add_special_tokens = flag_parameter(config, "add_special_tokens", default=True)
        try:
            self.tokenizer = Tokenizer.from_folder(folder)
            size = vocabulary_size(text_parameter(config, "gpt_model_path"), folder)
        except InflightError as error:
            raise pb_utils.TritonModelException(f"tokenizer_dir '{folder}': {error}") from error
        self.vocabulary_size = size or self.tokenizer.size

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        try:
            outputs = self.outputs({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        except RequestError as error:
            code = getattr(pb_utils.TritonError, error.code)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        except Exception as error:  # one bad request must not fail the others of its batch
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"preprocessing: {error!r}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def outputs(self, inputs):
        refuse_unsupported(inputs)
        rows = self.prompts(inputs["QUERY"])
        ends = inputs.get("END_ID", ids_column(len(rows), self.tokenizer.end_id))
        pads = inputs.get("PAD_ID", ids_column(len(rows), self.tokenizer.pad_id))
        return {
            "INPUT_ID": padded(rows, int(pads.flat[0])),
            "REQUEST_INPUT_LEN": np.array([[len(row)] for row in rows], np.int32),
            "DECODER_INPUT_ID": pads,
            "REQUEST_DECODER_INPUT_LEN": np.ones((len(rows), 1), np.int32),
            "BAD_WORDS_IDS": word_lists(self.words("BAD_WORDS_DICT", inputs, len(rows))),
            "STOP_WORDS_IDS": word_lists(self.words("STOP_WORDS_DICT", inputs, len(rows))),
            "EMBEDDING_BIAS": self.bias(inputs, len(rows)),
            "REQUEST_OUTPUT_LEN": inputs["REQUEST_OUTPUT_LEN"],
            "OUT_END_ID": ends,
            "OUT_PAD_ID": pads,
            "OUT_PROMPT_TABLE_EXTRA_IDS": extra_ids(rows, inputs.get("PROMPT_TABLE_EXTRA_ID"), self.vocabulary_size),
        }

    def prompts(self, query):
        """Token ids of each row."""
        rows = [self.tokenizer.encode(row[0], self.add_special_tokens) for row in texts("QUERY", query)]
        for index, row in enumerate(rows):
            if not row:
                raise RequestError(
                    "INVALID_ARG",
                    f"the prompt (text_input, QUERY) in row {index} of {len(rows)} gives 0 tokens, wanted at least 1",
                )
        return rows

    def words(self, name, inputs, batch):
        """Token ids of each word of each row, without special tokens."""
        if name not in inputs:
            return [[] for _ in range(batch)]
        rows = texts(name, inputs[name])
        return [[self.tokenizer.encode(word, add_special_tokens=False) for word in row] for row in rows]

    def bias(self, inputs, batch):
        words = self.words("EMBEDDING_BIAS_WORDS", inputs, batch)
        weights = inputs.get("EMBEDDING_BIAS_WEIGHTS", np.zeros((batch, 0), np.float32))
        if (found := max(map(len, words))) != weights.shape[1]:
            raise RequestError(
                "INVALID_ARG",
                f"EMBEDDING_BIAS_WORDS holds {found} words, EMBEDDING_BIAS_WEIGHTS {weights.shape[1]} weights, "
                "wanted as many of each",
            )
        pairs = [list(zip(row, row_weights, strict=True)) for row, row_weights in zip(words, weights, strict=True)]
        return embedding_bias(pairs, self.vocabulary_size)


def refuse_unsupported(inputs):
    for name, feature in UNSUPPORTED.items():
        if name in inputs and inputs[name].size and inputs[name].tolist() != [[b""]] * len(inputs[name]):
            raise RequestError("UNSUPPORTED", f"input {name} is for {feature}, which are not supported")


def ids_column(batch, token_id):
    """int32 [B, 1]; -1 stands for none."""
    return np.full((batch, 1), -1 if token_id is None else token_id, np.int32)
