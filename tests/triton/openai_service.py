"""The OpenAI interface in front of a test's server, as a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

from inflight.serve.locate import PACKAGE
from inflight.serve.server import Ports
from served import PATIENCE_S, HttpAnswer


class Service:
    def __init__(self, grpc_url: str, log: Path, *arguments: object):
        self.port = Ports.free().http
        self.log = log
        command = [sys.executable, "-m", "inflight", "openai", "--url", grpc_url, "--port", self.port, "--verbose"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*map(str, command), *map(str, arguments)],
                cwd=PACKAGE.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)

    def ask(self, path: str, body: object = None) -> HttpAnswer:
        """GET without a body, else POST of the bytes, or of anything else as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{self.url}{path}", data), timeout=PATIENCE_S
            ) as answer:
                return HttpAnswer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            return HttpAnswer(error.code, error.read())

    def connect(self, path: str, body: dict) -> socket.socket:
        """A connection on which the request was sent. HTTP 1.0: the answer comes without lengths of chunks."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        head = f"POST {path} HTTP/1.0\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        return connection

    def wait_until_up(self, patience_s: float = PATIENCE_S) -> None:
        end = time.monotonic() + patience_s
        while True:
            try:
                self.ask("/health")
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.05)
            else:
                return

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.terminate()
        self.process.wait(timeout=PATIENCE_S)


@contextmanager
def running(grpc_url: str, log: Path, *arguments: object) -> Iterator[Service]:
    service = Service(grpc_url, log, *arguments)
    try:
        service.wait_until_up()
        yield service
    finally:
        service.stop()


def by_choice(chunks):
    """index -> (text, finish reason), of completion chunks."""
    texts, reasons = {}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    return {index: (text, reasons[index]) for index, text in texts.items()}
