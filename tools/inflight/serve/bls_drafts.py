"""Drafting in rounds: a small model proposes some tokens, the target verifies them in one step, and so on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from inflight.detokenizer import PREFIX_TOKENS

Arrays = Mapping[str, np.ndarray]

ROUND_OUTPUTS = {"output_ids", "sequence_length", "num_output_tokens", "finish_reason"}
NOT_FOR_DRAFTS = {"stop_words_list", "prompt_embedding_table", "prompt_table_extra_ids"}  # the target's affair
# Of the answer they are those of its first round, of all rounds together, or of all joined; others of the last round.
FIRST = (
    *(f"kv_cache_{what}_blocks" for what in ("alloc_new", "reused", "alloc_total")),
    *(f"{what}_time_ns" for what in ("arrival", "first_scheduled", "first_token")),
    "num_input_tokens",
)
SUMMED = ("cum_log_probs", "total_draft_tokens", "total_accepted_draft_tokens")
JOINED = ("output_ids", "output_log_probs", "generation_logits")  # along axis 2
COUNTED = ("sequence_length", "num_output_tokens")


class Answer(Protocol):
    def responses(self) -> Iterator[dict[str, np.ndarray]]: ...
    def cancel(self) -> None: ...


class SpeculativeAnswer:
    """The target's answer made with a draft model's help; to be used as bls_models.EngineAnswer is.

    `ask_target`, `ask_draft`: (inputs, wanted outputs) -> an answer of one response. `inputs`: the engine's, one row.
    `ended`: is told each round's response, and whether its text ends the answer. A round computes only its new tokens
    where both models reuse KV blocks."""

    def __init__(
        self,
        ask_target: Callable[[Arrays, set[str]], Answer],
        ask_draft: Callable[[Arrays, set[str]], Answer],
        inputs: Arrays,
        outputs: set[str],
        num_drafts: int,
        use_logits: bool,
        ended: Callable[[Arrays], bool],
    ):
        self.cancelled = False
        self._ask_target, self._ask_draft = ask_target, ask_draft
        self._inputs = {name: array for name, array in inputs.items() if name != "streaming"}
        self._streaming = "streaming" in inputs and bool(inputs["streaming"].any())
        self._prompt = inputs["input_ids"][0, : int(inputs["input_lengths"].flat[0])].tolist()
        self._left = int(inputs["request_output_len"].flat[0])
        self._outputs = outputs | ROUND_OUTPUTS
        self._num_drafts, self._use_logits = num_drafts, use_logits
        self._ended = ended
        self._generated: list[int] = []
        self._includes_prompt = False
        self._current: Answer | None = None
        self._lock = threading.Lock()

    def responses(self) -> Iterator[dict[str, np.ndarray]]:
        """One of each round with streaming, else one of all. Raises what asking raises."""
        so_far: dict[str, np.ndarray] = {}
        for response in self._rounds():
            final = response["sequence_final"]
            final |= self._ended(response)
            so_far = joined(so_far, response)
            if self._streaming:
                yield response | {name: so_far[name] for name in so_far if name not in (*JOINED, *COUNTED)}
            if final.all():
                break
        if so_far and not self._streaming and not self.cancelled:
            yield self._whole(so_far)

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            current = self._current
        if current is not None:
            current.cancel()

    def stop(self) -> None:
        """Nothing runs between rounds."""

    def drain(self) -> None:
        """Every round has been read to its end."""

    def _rounds(self) -> Iterator[dict[str, np.ndarray]]:
        """Each round's response, with its new tokens alone, as a streaming engine sends them."""
        while True:
            drafts = self._propose(min(self._num_drafts, self._left - 1))
            response = self._ask(self._ask_target, self._target_inputs(drafts), self._outputs)
            if response is None:
                return
            yield self._take(response)

    def _propose(self, count: int) -> dict[str, np.ndarray]:
        """draft_input_ids [1, n] and draft_logits [1, n, vocabulary] of at most `count` tokens, or nothing."""
        if count < 1:
            return {}
        inputs = self._continued(count)
        for name in list(inputs):
            if name in NOT_FOR_DRAFTS or name.startswith("return_"):
                del inputs[name]
        inputs |= dict.fromkeys(("return_num_output_tokens",), np.ones((1, 1), bool))
        inputs["return_generation_logits"] = np.full((1, 1), self._use_logits)
        response = self._ask(self._ask_draft, inputs, ROUND_OUTPUTS | {"generation_logits"})
        if response is None:
            return {}
        tokens = new_tokens(response)
        if self._use_logits:
            return (
                {"draft_input_ids": tokens, "draft_logits": response["generation_logits"][:, 0]} if tokens.size else {}
            )
        if response["finish_reason"].item() == b"stop":  # by the end id, which is no part of the answer
            tokens = np.append(tokens, self._inputs["end_id"].astype(np.int32).reshape(1, 1), axis=1)
        return {"draft_input_ids": tokens}

    def _target_inputs(self, drafts: Arrays) -> dict[str, np.ndarray]:
        flags = {name: np.ones((1, 1), bool) for name in ("return_num_output_tokens", "stop_after_draft_tokens")}
        return {**self._continued(self._left), **flags, **drafts}

    def _continued(self, max_tokens: int) -> dict[str, np.ndarray]:
        """The inputs of a request that goes on behind what was generated."""
        tokens = [*self._prompt, *self._generated]
        numbers = {
            "input_lengths": len(tokens),
            "request_output_len": max_tokens,
            "continued_tokens": len(self._generated),
        }
        scalars = {name: np.full((1, 1), value, np.int32) for name, value in numbers.items()}
        return {**self._inputs, "input_ids": np.array([tokens], np.int32), **scalars}

    def _ask(
        self, ask: Callable[[Arrays, set[str]], Answer], inputs: Arrays, outputs: set[str]
    ) -> dict[str, np.ndarray] | None:
        """The one response; None when the answer is cancelled."""
        with self._lock:
            if self.cancelled:
                return None
            self._current = ask(inputs, outputs)
        responses = list(self._current.responses())
        return None if self.cancelled else responses[0]

    def _take(self, response: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens = new_tokens(response)
        self._includes_prompt = int(response["sequence_length"].flat[0]) > tokens.size
        prefix = self._generated[-PREFIX_TOKENS:]
        self._generated += tokens[0].tolist()
        self._left -= tokens.size
        if self._streaming and "generation_logits" in response:
            response["generation_logits"] = response["generation_logits"].swapaxes(1, 2)
        return {
            **response,
            "output_ids": tokens[None],
            "sequence_length": np.full((1, 1), tokens.size, np.int32),
            "prefix_ids": np.array([[prefix]], np.int32),
            "sequence_final": np.full((1, 1), response["finish_reason"].item() != b""),
        }

    def _whole(self, so_far: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens = [*(self._prompt if self._includes_prompt else []), *self._generated]
        return {
            **so_far,
            "output_ids": np.array([[tokens]], np.int32),
            "sequence_length": np.full((1, 1), len(tokens), np.int32),
            "prefix_ids": np.zeros((1, 1, 0), np.int32),
        }


def new_tokens(response: Arrays) -> np.ndarray:
    """int32 [1, n] of a whole answer's response."""
    length = int(response["sequence_length"].flat[0])
    return response["output_ids"][0, :, length - int(response["num_output_tokens"].flat[0]) : length]


def joined(so_far: Arrays, response: Arrays) -> dict[str, np.ndarray]:
    """The outputs of all rounds up to this one."""
    if not so_far:
        return dict(response)
    out = {**response, **{name: so_far[name] for name in FIRST if name in so_far}}
    for name in (*SUMMED, *COUNTED):
        if name in response:
            out[name] = so_far[name] + response[name]
    for name in JOINED:
        if name in response and name in so_far:
            out[name] = np.concatenate([so_far[name], response[name]], axis=2)
    if "acceptance_rate" in response and {*SUMMED[1:]} <= out.keys():
        drafted, accepted = (out[name].astype(np.float32) for name in SUMMED[1:])
        out["acceptance_rate"] = accepted / np.maximum(drafted, 1)
    return out
