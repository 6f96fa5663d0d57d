"""Log probabilities of tokens, and the objects in which OpenAI's interface returns them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inflight.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which JSON cannot say


@dataclass(frozen=True)
class TokenLogProb:
    """A token that was chosen, its natural log probability (None: the first of a prompt has none), and the likeliest
    ones at its place, best first. offset: where its text begins, in characters."""

    token: int
    log_prob: float | None
    likeliest: Sequence[tuple[int, float]] = ()
    offset: int = 0


def likeliest(logits: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """logits [rows, vocabulary] -> for each row the `count` best tokens with their log probabilities, best first;
    of equal ones the lowest id."""
    found = []
    for row in logits:
        row = row.astype(np.float32)
        total = _log_sum_exp(row)
        best = _best(row, min(count, len(row)))
        found.append([(int(token), float(row[token] - total)) for token in best])
    return found


def of_prompt(
    prompt: Sequence[int], context_logits: np.ndarray, count: int, offsets: Sequence[int]
) -> list[TokenLogProb]:
    """What the model thought of each prompt token. context_logits: [prompt, vocabulary]."""
    entries = [TokenLogProb(prompt[0], None)]
    for token, logits, offset in zip(prompt[1:], context_logits, offsets[1:], strict=False):
        row = logits.astype(np.float32)
        best = likeliest(row[None], count)[0] if count else ()
        entries.append(TokenLogProb(token, float(row[token] - _log_sum_exp(row)), best, offset))
    return entries


def _log_sum_exp(row: np.ndarray) -> np.float32:
    top = row.max()
    return top + np.log(np.exp(row - top).sum())


def _best(row: np.ndarray, count: int) -> np.ndarray:
    """A whole sort would cost more than the step that made the logits."""
    least = np.partition(row, len(row) - count)[len(row) - count]
    candidates = np.flatnonzero(row >= least)
    return candidates[np.argsort(-row[candidates], kind="stable")][:count]


def spelt(data: bytes) -> str:
    """A token's text; one that is no whole characters is spelt by its bytes, as OpenAI's interface does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_object(entries: Iterable[TokenLogProb], tokenizer: Tokenizer) -> dict[str, Any]:
    def one(token: int, log_prob: float | None) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        return {"token": spelt(data), "logprob": _finite(log_prob), "bytes": list(data)}

    content = [{**one(it.token, it.log_prob), "top_logprobs": [one(*pair) for pair in it.likeliest]} for it in entries]
    return {"content": content, "refusal": None}


def completion_object(entries: Sequence[TokenLogProb], tokenizer: Tokenizer, with_likeliest: bool) -> dict[str, Any]:
    def text(token: int) -> str:
        return spelt(tokenizer.token_bytes(token))

    return {
        "tokens": [text(it.token) for it in entries],
        "token_logprobs": [_finite(it.log_prob) for it in entries],
        "top_logprobs": [_by_text(it, text) for it in entries] if with_likeliest else None,
        "text_offset": [it.offset for it in entries],
    }


def _by_text(entry: TokenLogProb, text: Any) -> dict[str, float | None] | None:
    """The likeliest, and the chosen token if it is none of them."""
    if entry.log_prob is None:
        return None
    found = {text(token): _finite(value) for token, value in entry.likeliest}
    return {**found, text(entry.token): _finite(entry.log_prob)}


def _finite(value: float | None) -> float | None:
    return value if value is None else max(value, LEAST)
