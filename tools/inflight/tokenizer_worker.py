"""The tokenizer process of the backend's text models: python -m inflight.tokenizer_worker FOLDER.

It answers the requests on the socket that is its standard input, one by one, and ends with it. A message is its length
and its bytes; numbers are 32-bit little-endian integers. A request begins with a letter, an answer with one too:
K (done) or E (refused; the rest is the reason). The first answer comes unasked when the tokenizer is loaded.

    E  n, then n times: flag (add special tokens), length, UTF-8   ->  n times: count, ids
    D  flag (skip special tokens), flag (the sequence ends), count, ids before the chunk, count, ids of the chunk
                                                                    ->  UTF-8 of the chunk
    T                                                               ->  JSON of token_table()
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import BinaryIO

_NUMBER = struct.Struct("<i")


class Reader:
    """The numbers and texts of one message."""

    def __init__(self, message: bytes):
        self._message, self._position = message, 1

    def number(self) -> int:
        (value,) = _NUMBER.unpack_from(self._message, self._position)
        self._position += _NUMBER.size
        return value

    def text(self) -> str:
        return self._take(self.number()).decode()

    def numbers(self) -> list[int]:
        return array("i", self._take(_NUMBER.size * self.number())).tolist()

    def _take(self, size: int) -> bytes:
        self._position += size
        return self._message[self._position - size : self._position]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the server, which ends us
    connection = socket.socket(fileno=0)
    try:
        answer = answers(sys.argv[1])
    except Exception as error:
        send(connection, b"E" + str(error).encode())
        return
    send(connection, b"K")
    for message in messages(connection.makefile("rb")):
        try:
            send(connection, b"K" + answer(message))
        except ConnectionError:
            return
        except Exception as error:  # one bad request must not end the process
            send(connection, b"E" + repr(error).encode())


def answers(folder: str) -> Callable[[bytes], bytes]:
    """From a request to its answer. Raises when there is no tokenizer in the folder, or no tokenizer library."""
    from inflight.detokenizer import chunk_text
    from inflight.token_table import token_table
    from inflight.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(folder)

    def encode(reader: Reader) -> bytes:
        rows = [(reader.number(), reader.text()) for _ in range(reader.number())]
        return b"".join(counted(tokenizer.encode(text, bool(special))) for special, text in rows)

    def decode(reader: Reader) -> bytes:
        skip_special, end = bool(reader.number()), bool(reader.number())
        prefix, chunk = reader.numbers(), reader.numbers()
        return chunk_text(tokenizer, prefix, chunk, end, skip_special).encode()

    def table(reader: Reader) -> bytes:
        return json.dumps(token_table(tokenizer)).encode()

    actions = {b"E": encode, b"D": decode, b"T": table}
    return lambda message: actions[message[:1]](Reader(message))


def counted(ids: list[int]) -> bytes:
    return array("i", [len(ids), *ids]).tobytes()


def messages(stream: BinaryIO) -> Iterator[bytes]:
    """Until the other end is closed."""
    while len(head := stream.read(_NUMBER.size)) == _NUMBER.size:
        yield stream.read(_NUMBER.unpack(head)[0])


def send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_NUMBER.pack(len(message)) + message)


if __name__ == "__main__":
    main()
