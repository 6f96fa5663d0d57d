"""A tritonserver process: started, watched until it is ready, stopped by its id."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inflight.serve.backends import assemble, environment
from inflight.serve.llmapi_repository import completes_configs
from inflight.serve.locate import Installation, ServerError, find_backend_library, find_installation

LOG_TAIL_LINES = 30
PR_SET_PDEATHSIG = 1
# Logged as errors on every machine without a GPU.
HARMLESS = ("CudaDriverHelper has not been initialized", "unable to create stream for ensemble")
_ERROR = re.compile(r"E\d{4} |error:|.*\bSignal \(\d+\)|terminate called")


@dataclass(frozen=True)
class Ports:
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @classmethod
    def free(cls) -> Ports:
        """Three ports that nobody listens on now."""
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        try:
            return cls(*(it.getsockname()[1] for it in sockets))
        finally:
            for it in sockets:
                it.close()

    def require_free(self, host: str) -> None:
        """Raises ServerError for a port that another process listens on: it would answer in the server's place."""
        for kind in ("http", "grpc", "metrics"):
            port = getattr(self, kind)
            with socket.socket() as probe:
                if probe.connect_ex((host, port)) == 0:
                    raise ServerError(f"port {port} ({kind}) is taken: name another one or stop who listens there")


@dataclass
class TritonServer:
    """A server of one model repository, for `with`: entered when it is ready, stopped at the end.

    `library`: our backend's library; None takes the installed one. `cache`: where the backend folder is kept.
    Raises ServerError when a part is missing, or with the end of the log when the server does not get ready.
    """

    repository: Path
    binary: Path | str | None = None
    library: Path | str | None = None
    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports.free)
    arguments: Sequence[str] = ()
    log: Path | None = None
    cache: Path | None = None
    timeout_s: float = 300.0
    on_wait: Callable[[float], None] = lambda seconds: None
    process: subprocess.Popen | None = field(default=None, init=False)
    _temporary_log: Path | None = field(default=None, init=False)  # removed after an orderly end

    def __enter__(self) -> TritonServer:
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        return f"http://{self._reachable_host}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        return f"{self._reachable_host}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._reachable_host}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server was not started"
        return self.process.pid

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host

    def start(self) -> None:
        """Starts the process without waiting for it."""
        self.ports.require_free(self._reachable_host)
        installation = find_installation(self.binary)
        folder = assemble(installation, find_backend_library(self.library), self.cache)
        if self.log is None:
            descriptor, name = tempfile.mkstemp(prefix="inflight-server-", suffix=".log")
            os.close(descriptor)
            self.log = self._temporary_log = Path(name)
        command = server_command(installation, folder, self.repository, self.host, self.ports, self.arguments)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env=environment(installation, folder, dict(os.environ)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for us, who stop the server in order
                preexec_fn=_end_with_parent,
            )

    def wait_until_ready(self) -> None:
        """Returns when every model is ready; calls `on_wait` with the seconds so far meanwhile."""
        began = time.monotonic()
        while not self.is_ready():
            waited = time.monotonic() - began
            if self.process is None or self.process.poll() is not None:
                raise ServerError(f"the server ended with code {self.exit_code} before it was ready\n{self.log_tail()}")
            if waited > self.timeout_s:
                raise ServerError(f"the server is not ready after {self.timeout_s:.0f} s\n{self.log_tail()}")
            self.on_wait(waited)
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def stop(self, patience_s: float = 30.0) -> None:
        """Asks the process to end, and ends it when it does not within `patience_s`."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._temporary_log is not None and self.exit_code == 0:
            self._temporary_log.unlink(missing_ok=True)

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The log's errors, else its last lines."""
        if self.log is None or not self.log.is_file():
            return "(no log)"
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in text if _ERROR.match(line) and not any(it in line for it in HARMLESS)]
        return "\n".join([*(errors or text)[-lines:], f"(whole log: {self.log})"])


def _end_with_parent() -> None:
    """Runs in the new process: should this one be killed, the server gets SIGTERM."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def server_command(
    installation: Installation,
    folder: Path,
    repository: Path,
    host: str,
    ports: Ports,
    arguments: Sequence[str] = (),
) -> list[str]:
    """The command line of a server whose backend folder is `folder`/backends."""
    addresses = [f"--{kind}-address={host}" for kind in ("http", "grpc", "metrics")]
    numbers = [f"--{kind}-port={getattr(ports, kind)}" for kind in ("http", "grpc", "metrics")]
    return [
        str(installation.binary),
        f"--model-repository={repository}",
        f"--backend-directory={folder / 'backends'}",
        # Servers of one machine must not share the python backend's memory regions.
        f"--backend-config=python,shm-region-prefix-name=inflight_{os.getpid()}_{ports.http}_",
        # Threads in which scripts wait for other models' first responses: with the default of 32, long requests to a
        # script hold up all others.
        "--backend-config=python,thread-pool-size=256",
        *(() if completes_configs(repository) else ("--disable-auto-complete-config",)),
        *addresses,
        *numbers,
        *arguments,
    ]
