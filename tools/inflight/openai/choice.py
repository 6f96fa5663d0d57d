"""One answer in the making: the engine's pieces in, text that is certain out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inflight.detokenizer import TextStream
from inflight.openai.engine import Piece
from inflight.openai.logprobs import TokenLogProb, likeliest
from inflight.openai.stops import StopFinder
from inflight.tokenizer import Tokenizer


@dataclass
class Delta:
    """What a piece adds to choice `index`. finish_reason: set in the last one."""

    index: int
    text: str
    entries: list[TokenLogProb] = field(default_factory=list)
    finish_reason: str | None = None

    def extend(self, later: Delta) -> None:
        self.text += later.text
        self.entries += later.entries
        self.finish_reason = later.finish_reason


class Choice:
    """top: how many of the likeliest tokens go with each entry; None: no log probabilities at all.
    behind: the tokens whose text the answer goes on.

    An entry comes with the text that its token begins, so that none of a stop string shows.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        top: int | None = None,
        skip_special_tokens: bool = True,
        behind: Sequence[int] = (),
    ):
        self.index = index
        self.tokenizer = tokenizer
        self.tokens = 0
        self.finished = False
        self._text = TextStream(tokenizer, skip_special_tokens, behind)
        self._stops = StopFinder(stops)
        self._top = top
        self._decoded = 0  # characters, those held back for a stop string counted
        self._released = 0
        self._waiting: list[TokenLogProb] = []

    def push(self, piece: Piece) -> Delta | None:
        """None when nothing new is certain."""
        self.tokens += len(piece.tokens)
        end = bool(piece.finish_reason)
        text = self._decoded_text(piece, end)
        released = self._stops.push(text, end) if not self._stops.stopped else ""
        self._released += len(released)
        self.finished = end or self._stops.stopped
        reason = "stop" if self._stops.stopped else piece.finish_reason or None
        entries = self._certain_entries()
        return Delta(self.index, released, entries, reason) if released or entries or reason else None

    def start_behind(self, text: str, entries: Sequence[TokenLogProb]) -> Delta:
        """The prompt, echoed before the answer."""
        self._decoded = self._released = len(text)
        return Delta(self.index, text, list(entries))

    def _decoded_text(self, piece: Piece, end: bool) -> str:
        if self._top is None:
            text = self._text.push(piece.tokens, end)
            self._decoded += len(text)
            return text
        best = likeliest(piece.logits, self._top) if self._top and piece.tokens else [()] * len(piece.tokens)
        texts = []
        for index, token in enumerate(piece.tokens):
            self._waiting.append(TokenLogProb(token, piece.log_probs[index], best[index], self._decoded))
            texts.append(self._text.push([token]))
            self._decoded += len(texts[-1])
        if end:
            texts.append(self._text.push([], end=True))
            self._decoded += len(texts[-1])
        return "".join(texts)

    def _certain_entries(self) -> list[TokenLogProb]:
        """At a stop string those that begin before it, at another end all."""
        all_of_them = self.finished and not self._stops.stopped
        certain = [it for it in self._waiting if all_of_them or it.offset < self._released]
        self._waiting = self._waiting[len(certain) :]
        return certain
