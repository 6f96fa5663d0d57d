"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Cuts a text before the stop string that is complete first (of several that end there, the longest), however the
    text is split into pieces. Text that may yet turn out to begin a stop string is held back.

    Each word is followed by its own automaton (Knuth, Morris, Pratt 1977): the time is proportional to the text.
    """

    def __init__(self, words: Sequence[str]):
        self._words = sorted(words, key=len, reverse=True)
        self._fallbacks = [_fallbacks(word) for word in self._words]
        self._matched = [0] * len(self._words)
        self._held = ""
        self.stopped = False
        self.found = ""  # the stop string that was

    def push(self, piece: str, end: bool = False) -> str:
        """The text that is now certain; with `end`, all of it. Nothing may follow once `stopped` is set."""
        text = self._held + piece
        for position, character in enumerate(piece, len(self._held) + 1):
            if (length := self._advance(character)) > 0:
                self.stopped = True
                self.found = text[position - length : position]
                return text[: position - length]
        held = 0 if end else max(self._matched, default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _advance(self, character: str) -> int:
        """Length of the longest word that ends with this character; 0: none does."""
        for index, word in enumerate(self._words):
            matched = self._matched[index]
            while matched and word[matched] != character:
                matched = self._fallbacks[index][matched]
            self._matched[index] = matched + (word[matched] == character)
            if self._matched[index] == len(word):
                return len(word)
        return 0


def _fallbacks(word: str) -> list[int]:
    """For each number of matched characters, the longest shorter match that they end with."""
    fallbacks = [0] * (len(word) + 1)
    matched = 0
    for index in range(1, len(word)):
        while matched and word[matched] != word[index]:
            matched = fallbacks[matched]
        matched += word[matched] == word[index]
        fallbacks[index + 1] = matched
    return fallbacks
