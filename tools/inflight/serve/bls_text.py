"""The text of a scripted answer: what each response says, and where a stop word ends it."""

from __future__ import annotations

from collections.abc import Sequence


class SequenceText:
    """One sequence of an answer, ended by the first stop word in its text, whatever tokens that falls into.

    `words`: the last part of what is said. `accumulate`: every response says the whole text so far (of one beam).
    Several beams come whole in every response, since they may be rewritten."""

    def __init__(self, words: Sequence[str] = (), accumulate: bool = False):
        self.stopped = False
        self._words = [word for word in words if word]
        self._overlap = max(map(len, self._words), default=1) - 1  # a word may begin so far back
        self._accumulate = accumulate
        self._before = ""  # the end of what was said; with accumulate, all of it

    def push(self, texts: Sequence[str], unsearched: int = 0) -> list[str]:
        """What a response with `texts` (one a beam) says. No word is looked for in the first `unsearched` characters
        (a prompt)."""
        if len(texts) == 1:
            return [self._push_piece(texts[0], unsearched)]
        ends = [self._end(text, unsearched) for text in texts]
        self.stopped = None not in ends
        return [text[:end] for text, end in zip(texts, ends, strict=True)]

    def _push_piece(self, piece: str, unsearched: int) -> str:
        text = self._before + piece
        end = self._end(text, max(unsearched, len(self._before) - self._overlap))
        self.stopped = end is not None
        said = text[:end] if self._accumulate else text[len(self._before) : end]
        self._before = text if self._accumulate else text[max(0, len(text) - self._overlap) :]
        return said

    def _end(self, text: str, begin: int) -> int | None:
        """Where the first stop word behind `begin` ends."""
        found = [(text.find(word, begin), len(word)) for word in self._words]
        return min((place + length for place, length in found if place >= 0), default=None)


class AnswerText:
    """All sequences of one request. `words`: of each row; `sequences`: how many there are in all rows together."""

    def __init__(self, words: Sequence[Sequence[str]], sequences: int, accumulate: bool = False):
        self._words = words
        self._accumulate = accumulate
        self._open: dict[tuple[int, int], SequenceText] = {}
        self._ended: set[tuple[int, int]] = set()
        self._left = sequences
        self.cut_short = False  # a stop word ended a sequence before the engine did

    @property
    def done(self) -> bool:
        return self._left == 0

    def push(
        self, row: int, index: int, texts: Sequence[str], final: bool, unsearched: int = 0
    ) -> tuple[list[str], bool] | None:
        """(what the response says, whether a stop word ends the sequence here); None once the sequence has ended."""
        key = row, index
        if key in self._ended:
            return None
        sequence = self._open.setdefault(key, SequenceText(self._words[row], self._accumulate))
        said = sequence.push(texts, unsearched)
        if final or sequence.stopped:
            del self._open[key]
            self._ended.add(key)
            self._left -= 1
            self.cut_short |= not final
        return said, sequence.stopped
