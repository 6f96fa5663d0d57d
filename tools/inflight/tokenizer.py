"""Text to token ids and back, as Hugging Face fast tokenizers do it, from the files beside a checkpoint.

Only the `tokenizers` library is needed: neither transformers nor torch.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from inflight.errors import CheckpointError

REPLACEMENT = "\ufffd"
_META_SPACE = "\u2581"  # how SentencePiece spells a space


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return REPLACEMENT * (error.end - error.start), error.end


# As SentencePiece does it: one replacement character for each byte that is no part of a character.
codecs.register_error("inflight_each_byte", _replace_each_byte)
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Tokenizer:
    """A fast tokenizer with its special ids. Encoding and decoding equal transformers' AutoTokenizer, whose optional
    clean-up of spaces before punctuation is left out: it changes text that was already sent.

    A run of byte tokens (`<0xE4>`) that holds an incomplete character is decoded byte by byte, so that its complete
    characters do not depend on what follows.
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_id: int | None = None, pad_id: int | None = None):
        self.backend = backend
        self.end_id = end_id
        self.pad_id = pad_id if pad_id is not None else end_id
        self.size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self._added_ids = set(added)
        self.known_ids = frozenset(backend.get_vocab(with_added_tokens=True).values())
        self.special_ids = {id_ for id_, token in added.items() if token.special}
        self.byte_of_id = _byte_tokens(backend)
        self._is_byte_level = backend.decoder is not None and b"ByteLevel" in backend.decoder.__getstate__()

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """Reads tokenizer.json, and the special ids from tokenizer_config.json, generation_config.json or config.json.
        `folder`: a checkpoint, or an engine folder, whose plan names its checkpoint. Raises CheckpointError."""
        folder = tokenizer_folder(folder)
        backend = _load_backend(folder / "tokenizer.json")
        end_id, pad_id = (_special_id(folder, backend, kind) for kind in ("eos", "pad"))
        return cls(backend, end_id, pad_id)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Special tokens that are spelt out in the text become those tokens."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_unlocked(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The same for a long text in a thread: other threads run meanwhile."""
        return self.backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids

    def token_bytes(self, id_: int) -> bytes:
        """What one token stands for, which need not be whole characters; empty outside the vocabulary."""
        token = self.backend.id_to_token(id_)
        if token is None or id_ in self._added_ids:
            return (token or "").encode()
        if id_ in self.byte_of_id:
            return bytes([self.byte_of_id[id_]])
        if self._is_byte_level:
            return bytes(_BYTE_OF_CHARACTER[character] for character in token)
        return token.replace(_META_SPACE, " ").encode()

    def longest_token(self) -> int:
        """Characters of the longest entry of the vocabulary."""
        return max(map(len, self.backend.get_vocab(with_added_tokens=True)))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Ids outside the vocabulary give nothing."""
        return self._decode(self._visible(ids, skip_special_tokens))

    def decode_complete(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text without the trailing part of a character that further tokens may complete: always a prefix of the
        text of `ids` with any tokens behind them."""
        visible = self._visible(ids, skip_special_tokens)
        if self.byte_of_id:
            return self._decode(visible[: len(visible) - self._pending_bytes(visible)])
        text = self._decode(visible)
        return text[:-1] if text.endswith(REPLACEMENT) else text

    def _visible(self, ids: Sequence[int], skip_special_tokens: bool) -> list[int]:
        hidden = self.special_ids if skip_special_tokens else ()
        return [id_ for id_ in ids if id_ in self.known_ids and id_ not in hidden]

    def _decode(self, ids: list[int]) -> str:
        if self.byte_of_id and (tokens := self._repaired(ids)) is not None:
            return self.backend.decoder.decode(tokens)
        return self.backend.decode(ids, skip_special_tokens=False)

    def _trailing_bytes(self, ids: list[int]) -> bytes:
        start = len(ids)
        while start and ids[start - 1] in self.byte_of_id:
            start -= 1
        return bytes(self.byte_of_id[id_] for id_ in ids[start:])

    def _pending_bytes(self, ids: list[int]) -> int:
        """How many byte tokens at the end begin a character without ending it."""
        decoder = _Utf8Decoder("inflight_each_byte")
        decoder.decode(self._trailing_bytes(ids))
        return len(decoder.getstate()[0])

    def _repaired(self, ids: list[int]) -> list[str] | None:
        """Tokens in which malformed runs of byte tokens stand as their text; None when there is no such run."""
        tokens: list[str] = []
        malformed = False
        run = bytearray()
        for id_ in [*ids, None]:
            if id_ is not None and id_ in self.byte_of_id:
                run.append(self.byte_of_id[id_])
                continue
            if run:
                tokens.append(bytes(run).decode("utf-8", "inflight_each_byte"))
                malformed |= not _is_utf8(bytes(run))
                run.clear()
            if id_ is not None:
                tokens.append(self.backend.id_to_token(id_))
        return tokens if malformed else None


def tokenizer_folder(folder: Path | str) -> Path:
    """Where tokenizer.json lies for a checkpoint or an engine folder. Raises CheckpointError."""
    folder = Path(folder)
    candidates = [folder]
    if (plan := _read_json(folder / "plan.json")) is not None:
        candidates.append(folder / plan["checkpoint"]["directory"])
    for candidate in candidates:
        if (candidate / "tokenizer.json").is_file():
            return candidate
    looked_in = " or ".join(str(candidate) for candidate in candidates)
    raise CheckpointError(f"no tokenizer.json in {looked_in}: a fast tokenizer is wanted there")


def vocabulary_size(*folders: Path | str | None) -> int | None:
    """Entries of the network's logits, from the first folder with a plan.json or config.json; None without any."""
    for folder in folders:
        if folder is None:
            continue
        if (plan := _read_json(Path(folder) / "plan.json")) is not None:
            return plan["network"]["vocabulary_size"]
        config = _read_json(Path(folder) / "config.json") or {}
        size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
        if size is not None:
            return size
    return None


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer that the tokenizers library reads: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _byte_tokens(backend: tokenizers.Tokenizer) -> dict[int, int]:
    """Token id to byte, for tokenizers that fall back to byte tokens; else empty."""
    decoder = backend.decoder
    if decoder is None or b"ByteFallback" not in decoder.__getstate__():
        return {}
    ids = {byte: backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {id_: byte for byte, id_ in ids.items() if id_ is not None}


def _byte_level_characters() -> dict[str, int]:
    """Byte-level vocabularies spell the bytes that print in Latin-1 by themselves, the others from U+0100 on."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printing)
    return {chr(byte): byte for byte in printing} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_characters()


def _special_id(folder: Path, backend: tokenizers.Tokenizer, kind: str) -> int | None:
    """The id of the `eos` or `pad` token: the tokenizer's own word counts before the configurations'."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = (_read_json(folder / name) or {}).get(f"{kind}_token")
        content = token.get("content") if isinstance(token, dict) else token
        if content is not None and (id_ := backend.token_to_id(content)) is not None:
            return id_
    for name in ("generation_config.json", "config.json"):
        ids = (_read_json(folder / name) or {}).get(f"{kind}_token_id")
        id_ = ids[0] if isinstance(ids, list) and ids else ids
        if isinstance(id_, int):
            return id_
    return None


def _read_json(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _is_utf8(data: Iterable[int]) -> bool:
    try:
        bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
