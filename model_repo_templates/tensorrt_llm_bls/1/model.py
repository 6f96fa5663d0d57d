"""The ensemble's chain as a script: preprocessing, the engine model, postprocessing, with the ensemble's tensors.

Beyond the ensemble: stop words are found in the text, accumulate_tokens, and a draft model that the target verifies.
"""

import json
import sys
import threading

try:
    import numpy as np

    from inflight.serve.bls_drafts import SpeculativeAnswer
    from inflight.serve.bls_models import EngineAnswer, call, error_response, tensors
    from inflight.serve.bls_tensors import (
        CHUNK_OUTPUTS,
        ENGINE_INPUTS,
        ENGINE_OUTPUTS,
        PREPROCESSING_INPUTS,
        PREPROCESSING_OUTPUTS,
        UNSUPPORTED,
    )
    from inflight.serve.bls_text import AnswerText, SequenceText
    from inflight.serve.bls_watch import CancellationWatch
    from inflight.serve.model_support import RequestError, flag_parameter, text_parameter, texts
except ImportError as error:
    raise ImportError(
        f"{error}: Triton's Python at {sys.prefix} needs the inflight package; start tritonserver with the virtual "
        "environment's bin folder first in PATH, or pip install inflight for that Python"
    ) from error

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.accumulate = flag_parameter(config, "accumulate_tokens", default=False)
        self.engine = text_parameter(config, "tensorrt_llm_model_name") or "tensorrt_llm"
        self.draft_model = text_parameter(config, "tensorrt_llm_draft_model_name")
        if text_parameter(config, "multimodal_encoders_name") is not None:
            raise pb_utils.TritonModelException("parameter multimodal_encoders_name is not supported; leave it out")
        self.watch = CancellationWatch()
        self.threads = set()

    def execute(self, requests):
        """One thread a request, so that one instance serves many."""
        self.threads = {thread for thread in self.threads if thread.is_alive()}
        for request in requests:
            thread = threading.Thread(target=self.answer, args=(request, request.get_response_sender()))
            self.threads.add(thread)
            thread.start()

    def finalize(self):
        for thread in self.threads:
            thread.join()
        self.watch.close()

    def answer(self, request, sender):
        """The final flag goes with the last response: many clients never see one that comes alone."""
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            check_inputs(inputs)
            check_drafting(inputs, self.draft_model)
            self.chain(inputs, set(request.requested_output_names()), sender)
        except Exception as error:
            sender.send(error_response(error), flags=FINAL)

    def chain(self, inputs, outputs, sender):
        """Raises RequestError and InnerError, before the final response."""
        answer = AnswerText(stop_words(inputs), number_of_sequences(inputs), self.accumulate)
        engine = self.ask_engine(inputs, outputs)
        final = None
        with self.watch.watching(sender.is_cancelled, engine.cancel):
            for chunk in engine.responses():
                response = self.response(chunk, answer, inputs, outputs)
                if answer.done:
                    final = response
                    break
                if response is not None:
                    sender.send(response)
        if engine.cancelled:
            raise RequestError("CANCELLED", "the request was cancelled")
        if final is None:
            raise RequestError("INTERNAL", f"model {self.engine} ended before the answer")
        sender.send(final, flags=FINAL)
        if answer.cut_short:
            engine.stop()
        engine.drain()

    def ask_engine(self, inputs, outputs):
        tokens = call("preprocessing", rename(inputs, PREPROCESSING_INPUTS), PREPROCESSING_OUTPUTS)
        engine_inputs = {**rename(tokens, PREPROCESSING_OUTPUTS), **rename(inputs, ENGINE_INPUTS)}
        engine_inputs["return_num_output_tokens"] = np.ones((len(inputs["text_input"]), 1), bool)
        wanted = {*CHUNK_OUTPUTS, "batch_index", "sequence_index", "num_output_tokens"}
        wanted |= {name for name in ENGINE_OUTPUTS if name in outputs}
        if number(inputs, "num_draft_tokens") == 0:
            return self.ask(self.engine)(engine_inputs, wanted)
        return self.speculate(inputs, engine_inputs, wanted)

    def ask(self, model):
        return lambda inputs, outputs: EngineAnswer(model, inputs, sorted(outputs), self.decoupled)

    def speculate(self, inputs, engine_inputs, wanted):
        text = SequenceText(stop_words(inputs)[0])

        def ended(chunk):  # of a stream, chain() sees every round's text
            if "stop_words" in inputs and not flag(inputs, "stream"):
                text.push(self.texts(chunk))
            return text.stopped

        if {"acceptance_rate", "total_draft_tokens", "total_accepted_draft_tokens"} & wanted:
            wanted |= {"total_draft_tokens", "total_accepted_draft_tokens"}
        return SpeculativeAnswer(
            self.ask(self.engine),
            self.ask(self.draft_model),
            engine_inputs,
            wanted - {"prefix_ids", "sequence_final"},
            number(inputs, "num_draft_tokens"),
            flag(inputs, "use_draft_logits"),
            ended,
        )

    def response(self, chunk, answer, inputs, outputs):
        """What the client gets of a response of the engine; None: nothing."""
        row, index = (int(chunk[name].flat[0]) if name in chunk else 0 for name in ("batch_index", "sequence_index"))
        final = bool(chunk["sequence_final"].flat[0])
        pushed = answer.push(row, index, self.texts(chunk), final, self.prompt_characters(chunk, inputs))
        if pushed is None:
            return None
        said, stopped = pushed
        kept = {name: array for name, array in chunk.items() if name in outputs}
        if not flag(inputs, "return_num_output_tokens"):
            kept.pop("num_output_tokens", None)
        if stopped and "finish_reason" in kept:
            kept["finish_reason"] = np.array([[b"stop"]], object)
        kept["text_output"] = np.array([text.encode() for text in said], object)  # as postprocessing gives it
        return pb_utils.InferenceResponse(tensors(kept))

    def texts(self, chunk):
        """The chunk's text, one for each beam."""
        beams = call("postprocessing", rename(chunk, CHUNK_OUTPUTS), ["OUTPUT"])["OUTPUT"]
        return [text.decode() for text in beams]

    def prompt_characters(self, chunk, inputs):
        """How much of the text is the prompt, in which no stop word is looked for."""
        length = int(chunk["sequence_length"].flat[0]) - int(chunk["num_output_tokens"].flat[0])
        if length <= 0 or "stop_words" not in inputs:
            return 0
        prompt = {
            "output_ids": chunk["output_ids"][:, :1, :length],
            "sequence_length": np.full((1, 1), length, np.int32),
        }
        return len(self.texts(prompt)[0])


def check_inputs(inputs):
    for name, feature in UNSUPPORTED.items():
        if name in inputs and inputs[name].size:
            raise RequestError("UNSUPPORTED", f"input {name} is for {feature}, which are not supported")
    for name in ("text_input", "max_tokens"):
        if name not in inputs or inputs[name].shape != (len(inputs[name]), 1) or not inputs[name].size:
            found = list(inputs[name].shape) if name in inputs else "missing"
            raise RequestError("INVALID_ARG", f"input {name} is {found}, wanted one value a row")
    if (least := inputs["max_tokens"].min()) < 1:
        raise RequestError("INVALID_ARG", f"max_tokens is {least}, wanted at least 1")


def check_drafting(inputs, draft_model):
    """Whether the request may be answered with a draft model, where it wants that."""
    count = number(inputs, "num_draft_tokens")
    if count < 0:
        raise RequestError("INVALID_ARG", f"num_draft_tokens is {count}, wanted 0 or more")
    if count == 0:
        if flag(inputs, "use_draft_logits"):
            raise RequestError("INVALID_ARG", "use_draft_logits is true without num_draft_tokens")
        return
    if draft_model is None:
        raise RequestError(
            "INVALID_ARG", f"num_draft_tokens is {count}, but parameter tensorrt_llm_draft_model_name names no model"
        )
    if (rows := len(inputs["text_input"])) > 1:
        raise RequestError("INVALID_ARG", f"num_draft_tokens with {rows} rows, wanted one")
    for name in ("num_return_sequences", "beam_width"):
        if number(inputs, name) > 1:
            raise RequestError("INVALID_ARG", f"num_draft_tokens with {name} {number(inputs, name)}, wanted 1")
    if flag(inputs, "return_context_logits"):
        raise RequestError("INVALID_ARG", "num_draft_tokens with return_context_logits, wanted one of them")


def stop_words(inputs):
    """Of each row."""
    if "stop_words" not in inputs:
        return [[] for _ in inputs["text_input"]]
    return texts("stop_words", inputs["stop_words"])


def number_of_sequences(inputs):
    return int(inputs.get("num_return_sequences", np.ones((len(inputs["text_input"]), 1), np.int32)).sum())


def number(inputs, name):
    return int(inputs[name].max()) if name in inputs else 0


def flag(inputs, name):
    return name in inputs and bool(inputs[name].any())


def rename(arrays, names):
    """The arrays that `names` lists, under their names for the other model."""
    return {new: arrays[old] for old, new in names.items() if old in arrays}
