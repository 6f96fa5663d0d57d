"""What each token id of a tokenizer adds to a text, for a decoder elsewhere that follows a stream token by token.

Two families of decoders fit: byte-level ones, whose tokens are bytes that make characters together, and those whose
tokens are texts of their own (with `<0xE4>` tokens for the bytes of rare characters), where only the first token of a
text may differ. Others get no table.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from inflight.tokenizer import Tokenizer

SAMPLES = 256
SAMPLE_TEXTS = (
    "def add(a, b):\n    return a + b\n",
    "  Spaces , punctuation . It's 3.14 !",
    "naïve café – ‘quotes’ … ½",
    "中文，日本語の文章、한국어",
    "emoji 🙂🙃 👨‍👩‍👧 🇳🇱 e\u0301",
    "العربية हिन्दी ไทย \t\r\n\n",
)


def token_table(tokenizer: Tokenizer) -> dict[str, Any]:
    """The table as JSON data. Bytes are hexadecimal; `tokens` is empty where the decoder does not fit."""
    backend = tokenizer.backend
    names = _decoder_names(backend)
    table: dict[str, Any] = {"tokens": [], "byte_tokens": [], "special": [], "first": {}, "joins_bytes": False}
    if "ByteLevel" in names:
        table |= {"tokens": _hex(_byte_level_tokens(backend)), "joins_bytes": True}
    elif (texts := _separate_texts(tokenizer)) is not None:
        table |= texts
    if table["tokens"]:
        table["special"] = sorted(tokenizer.special_ids)
    return {
        **table,
        "decoder": " + ".join(names) or "none",
        "end_id": tokenizer.end_id,
        "pad_id": tokenizer.pad_id,
        "samples": _samples(tokenizer),
    }


def _decoder_names(backend: tokenizers.Tokenizer) -> list[str]:
    """Types of the decoder and of its parts."""
    if backend.decoder is None:
        return []
    state = json.loads(backend.decoder.__getstate__())
    return [part["type"] for part in state.get("decoders", [state])]


def _ids(backend: tokenizers.Tokenizer) -> range:
    return range(1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1))


def _byte_level_tokens(backend: tokenizers.Tokenizer) -> list[bytes | None]:
    """A token is spelt with one letter a byte; one that holds another letter stands for itself."""
    byte_of = _byte_of_letter()
    tokens = [backend.id_to_token(id_) for id_ in _ids(backend)]
    return [token if token is None else _spelt_bytes(token, byte_of) for token in tokens]


def _spelt_bytes(token: str, byte_of: dict[str, int]) -> bytes:
    if all(letter in byte_of for letter in token):
        return bytes(byte_of[letter] for letter in token)
    return token.encode()


def _byte_of_letter() -> dict[str, int]:
    """The library's own letters: a byte that is printable in Latin-1 is its own letter, the others follow from 256."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    letters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    return letters


def _separate_texts(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Each token's text behind another token, and at the start where it differs; None where texts are not separate."""
    backend = tokenizer.backend
    known = sorted(tokenizer.known_ids)
    alone = dict(zip(known, _decode_each(backend, [[id_] for id_ in known]), strict=True))
    anchor = next((id_ for id_ in known if alone[id_].isalnum() and id_ not in tokenizer.byte_of_id), None)
    if anchor is None:
        return None
    behind = dict(zip(known, _decode_each(backend, [[anchor, id_] for id_ in known]), strict=True))
    if not all(text.startswith(alone[anchor]) for text in behind.values()):
        return None
    texts = {id_: text[len(alone[anchor]) :].encode() for id_, text in behind.items()}
    texts |= {id_: bytes([byte]) for id_, byte in tokenizer.byte_of_id.items()}
    whole_bytes = {id_ for id_, byte in tokenizer.byte_of_id.items() if byte >= 0x80}
    first = {
        id_: text.encode() for id_, text in alone.items() if id_ not in whole_bytes and text.encode() != texts[id_]
    }
    return {
        "tokens": _hex([texts.get(id_) for id_ in _ids(backend)]),
        "byte_tokens": sorted(tokenizer.byte_of_id),
        "first": {str(id_): text.hex() for id_, text in first.items()},
    }


def _decode_each(backend: tokenizers.Tokenizer, sequences: Sequence[Sequence[int]]) -> list[str]:
    return backend.decode_batch(sequences, skip_special_tokens=False)


def _hex(tokens: Sequence[bytes | None]) -> list[str | None]:
    return [token if token is None else token.hex() for token in tokens]


def _samples(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Texts as the tokenizer splits them, their parts, and random tokens."""
    generator = random.Random(1)
    sequences = [tokenizer.encode(text) for text in SAMPLE_TEXTS]
    for number in range(SAMPLES):
        ids = sequences[number % len(SAMPLE_TEXTS)]
        begin, end = sorted(generator.choices(range(len(ids) + 1), k=2))
        random_ids = [generator.randrange(tokenizer.size + 2) for _ in range(generator.randrange(12))]
        sequences.append([*random_ids, *ids[begin:end]])
    pairs = [(ids, number % 3 != 0) for number, ids in enumerate(sequences)]
    return [{"ids": ids, "skip_special": skip, "text": tokenizer.decode(ids, skip)} for ids, skip in pairs]
