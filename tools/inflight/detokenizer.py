"""Streamed token ids to text whose pieces concatenate to exactly the decode of the whole.

The text of a chunk is what `prefix + chunk` decodes to, less what `prefix` alone does, where the trailing part of a
character is held back until it is complete or the sequence ends. The prefix is a short window of the tokens before the
chunk: long enough that the last token of it has visible text and stands on a character's boundary.
"""

from __future__ import annotations

from collections.abc import Sequence

from inflight.tokenizer import Tokenizer

PREFIX_TOKENS = 16


def chunk_text(
    tokenizer: Tokenizer,
    prefix: Sequence[int],
    chunk: Sequence[int],
    end: bool,
    skip_special_tokens: bool = True,
) -> str:
    """The new text of `chunk`, whose sequence went on with `prefix` before it (the last tokens; empty at the start).
    `end`: the sequence ends here, so nothing is held back. Keeps no state between calls."""
    decode = tokenizer.decode if end else tokenizer.decode_complete
    sent = tokenizer.decode_complete(prefix, skip_special_tokens)
    return decode([*prefix, *chunk], skip_special_tokens)[len(sent) :]


class TextStream:
    """The same with the window kept here, for callers that see every token of one sequence. `behind`: tokens whose text
    this one goes on; without them some tokenizers drop the space before the first word."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, behind: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._prefix = list(behind[-PREFIX_TOKENS:])

    def push(self, tokens: Sequence[int], end: bool = False) -> str:
        """The text that is now certain; with `end`, all the rest."""
        text = chunk_text(self._tokenizer, self._prefix, tokens, end, self._skip_special_tokens)
        self._prefix = [*self._prefix, *tokens][-PREFIX_TOKENS:]
        return text
